"""The blocked attention against its naive twin, on ragged shapes."""

from __future__ import annotations

import pytest
import torch

from longmem.ops.working_set_attention import attend, attend_naive

# heads, KV heads, queries, far keys, local keys, window
SHAPES = [
    (4, 2, 1, 0, 1, 4),
    (4, 2, 1, 5, 9, 4),
    (8, 2, 3, 7, 11, 4),
    (4, 4, 6, 0, 6, 4),
    (4, 1, 5, 3, 20, 8),
    (2, 2, 9, 3, 9, 3),
    (4, 2, 2, 3, 40, 39),
    (8, 1, 1, 63, 65, 64),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("keep_pending", [True, False])
@pytest.mark.parametrize("mass_of", ["attention", "logits"])
def test_blocked_attention_equals_the_naive_one(shape, softcap, with_sinks, keep_pending, mass_of):
    heads, kv_heads, n_query, n_far, n_keys, n_local = shape
    torch.manual_seed(sum(shape))
    q_near, q_far = torch.randn(2, heads, n_query, 8).mul(2)
    far_k, far_v = torch.randn(2, kv_heads, n_far, 8)
    raw, rot, v = torch.randn(3, kv_heads, n_keys, 8)
    settings = dict(
        n_local=n_local,
        scaling=0.3,
        softcap=softcap,
        sinks=torch.randn(heads) if with_sinks else None,
        keep_pending=keep_pending,
        mass_of=mass_of,
        far_length=torch.randint(0, n_far + 1, (kv_heads,)) if mass_of == "logits" else None,
        want_lse=True,
        want_weights=True,
    )
    expected = attend_naive(q_near, q_far, far_k, far_v, raw, rot, v, **settings)
    result = attend(q_near, q_far, far_k, far_v, raw, rot, v, **settings)
    for got, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_the_inputs_are_left_as_they_were():
    q_near, q_far = torch.randn(2, 4, 3, 8)
    keys = torch.randn(5, 2, 9, 8)
    before = (q_near.clone(), q_far.clone(), keys.clone())
    attend(q_near, q_far, *keys, n_local=4, scaling=0.3)
    for now, then in zip((q_near, q_far, keys), before, strict=True):
        assert torch.equal(now, then)
