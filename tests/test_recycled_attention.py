"""Attention over the tokens of the last refresh: the fast one against its naive twin, and the set of
tokens against attention over the whole working set."""

from __future__ import annotations

import pytest
import torch

from longmem.memory.reading import AttentionCall
from longmem.memory.recycled import RecycledSet
from longmem.memory.spec import LayerSpec
from longmem.memory.window import LocalBuffer
from longmem.ops.recycled_attention import attend_naive, attend_recycled
from longmem.ops.rotary import Rotary
from longmem.ops.working_set_attention import Attended, attend

ROTARY = Rotary(torch.tensor([1.0, 0.3, 0.1, 0.01], dtype=torch.float64), "half")
SPEC = LayerSpec(0, 4, 2, 8, ROTARY, None, 0.5, torch.float32, torch.device("cpu"))
N_LOCAL = 6


@pytest.mark.parametrize("shape", [(4, 2, 1), (4, 2, 9), (8, 1, 17), (3, 3, 5), (8, 4, 64)])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("with_empty", [False, True])
@pytest.mark.parametrize("mass_of", ["attention", "logits"])
def test_fast_recycled_attention_equals_the_naive_one(
    shape, softcap, with_sinks, with_empty, mass_of
):
    heads, kv_heads, n = shape
    torch.manual_seed(sum(shape))
    q_near, q_far = torch.randn(2, heads, 8).mul(2)
    k, v = torch.randn(2, kv_heads, n, 8)
    far = torch.rand(kv_heads, n) < 0.5
    far[:, -1] = False
    empty = (torch.rand(kv_heads, n) < 0.3) & far if with_empty else None
    settings = dict(
        scaling=0.3,
        empty=empty,
        softcap=softcap,
        sinks=torch.randn(heads) if with_sinks else None,
        mass_of=mass_of,
        want_lse=True,
    )
    expected = attend_naive(q_near, q_far, k, v, far, **settings)
    result = attend_recycled(q_near, q_far, k, v, far, **settings)
    for got, wanted in zip(result[:3], expected[:3], strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


class Layer:
    """A local buffer and far tokens, read by random queries; everything can be repeated by seed."""

    def __init__(self, n_far: int, n_read: int, *, ragged: bool = False) -> None:
        self.random = torch.Generator().manual_seed(n_far + n_read)
        self.local = LocalBuffer(SPEC)
        self.far_k, self.far_v = self.noise(2, 2, n_far, 8)
        self.far_length = torch.tensor([n_far, n_far - 3]) if ragged else None
        self.call = AttentionCall(0.5, None, None)
        self.read(n_read)
        self.local.mass.zero_()

    def noise(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def read(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Append n tokens; gives queries ``[H, n, D]`` at their positions and at n_local."""
        first = self.local.first + len(self.local)
        at = ROTARY.angles(torch.arange(first, first + n), torch.float32)
        self.local.append(*self.noise(2, 2, n, 8), at)
        q, window = self.noise(4, n, 8), torch.tensor([N_LOCAL])
        far = ROTARY.angles(window, torch.float32)
        return ROTARY.rotate(q, at), ROTARY.rotate(q, far)

    def whole(self, q_near: torch.Tensor, q_far: torch.Tensor, **wanted: bool) -> Attended:
        """Attention over everything there is."""
        local = self.local
        return attend(
            q_near, q_far, self.far_k, self.far_v, local.raw, local.rot, local.v,
            n_local=N_LOCAL, scaling=0.5, far_length=self.far_length, **wanted,
        )  # fmt: skip

    def refresh(self, kept: RecycledSet) -> torch.Tensor:
        """One step over everything, which `kept` remembers; gives the weights."""
        weights = self.whole(*self.read(1), want_weights=True).weights
        assert weights is not None
        kept.refresh(weights, self.far_k, self.far_v, self.far_length)
        return weights


@pytest.mark.parametrize(("n_far", "ragged"), [(0, False), (7, False), (7, True)])
def test_a_set_that_holds_all_tokens_attends_as_the_whole_working_set_does(n_far, ragged):
    layer, kept = Layer(n_far, 9, ragged=ragged), RecycledSet(SPEC, 500, 1, N_LOCAL)
    layer.refresh(kept)
    for _ in range(40):  # long enough to move and to grow, and for all tokens to leave the window
        queries = layer.read(1)
        expected = layer.whole(*queries, want_lse=True)
        before = layer.local.mass.clone()
        result = kept.attend(*queries, layer.local, layer.call, want_lse=True)
        torch.testing.assert_close(result.out, expected.out, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(result.lse, expected.lse, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(layer.local.mass - before, expected.mass, atol=1e-5, rtol=1e-4)


def test_each_kv_head_keeps_the_tokens_that_its_heads_attend_to_most():
    layer, kept = Layer(5, 9), RecycledSet(SPEC, 4, 1, N_LOCAL)
    weights = layer.refresh(kept)
    local = layer.local
    pending = len(local) - N_LOCAL
    keys = torch.cat((layer.far_k, local.raw[:, :pending], local.rot[:, pending:]), dim=1)
    values = torch.cat((layer.far_v, local.v), dim=1)
    best = weights.amax(1).topk(4, dim=1).indices
    q_near, q_far = layer.read(1)
    found = kept.attend(q_near, q_far, local, layer.call).out[:, 0]
    for head in range(4):
        kv, crossed = head // 2, 5 + pending
        logits, vs = [q_near[head, 0] @ local.rot[kv, -1]], [local.v[kv, -1]]
        for j in best[kv, :3].tolist():  # the lowest of four made room for the new token
            key = local.raw[kv, j - 5] if j == crossed else keys[kv, j]
            logits.append((q_far if j <= crossed else q_near)[head, 0] @ key)
            vs.append(values[kv, j])
        expected = torch.softmax(torch.stack(logits) * 0.5, 0) @ torch.stack(vs)
        torch.testing.assert_close(found[head], expected, atol=1e-5, rtol=1e-4)


def test_new_tokens_push_out_those_of_the_refresh_and_then_each_other():
    layer, kept = Layer(5, 9), RecycledSet(SPEC, 4, 1, N_LOCAL)
    layer.refresh(kept)
    for _ in range(70):
        queries = layer.read(1)
        found = kept.attend(*queries, layer.local, layer.call)
        assert len(kept) == 4
    local = layer.local
    last = [t[:, -4:] for t in (local.raw, local.rot, local.v)]
    none = local.raw[:, :0]
    expected = attend(*queries, none, none, *last, n_local=N_LOCAL, scaling=0.5)
    torch.testing.assert_close(found.out, expected.out, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("pool", "held"), [(1, {2, 4, 7, 13}), (3, {6, 7, 8, 13})])
def test_pooling_keeps_the_neighbours_of_a_token_that_scores_high(pool, held):
    layer, kept = Layer(0, 13), RecycledSet(SPEC, 4, pool, 100)
    weights = torch.full((2, 2, 13), 0.01)
    weights[:, 0, [7, 4, 2, 10]] = torch.tensor([0.5, 0.04, 0.03, 0.02])
    kept.refresh(weights, layer.far_k, layer.far_v)
    mass = kept.attend(*layer.read(1), layer.local, layer.call).mass
    for head in mass:
        assert set(head.nonzero()[:, 0].tolist()) == held


@pytest.mark.parametrize("tokens", [1, 5, 500])
def test_tokens_read_at_once_equal_tokens_read_one_by_one(tokens):
    one, many = Layer(6, 11), Layer(6, 11)
    single, several = (RecycledSet(SPEC, tokens, 3, N_LOCAL) for _ in range(2))
    one.refresh(single)
    many.refresh(several)
    q_near, q_far = many.read(9)
    together = several.attend(q_near, q_far, many.local, many.call)
    k, v = many.local.raw[:, -9:], many.local.v[:, -9:]
    for t in range(9):
        at = torch.arange(t + 12, t + 13)
        one.local.append(k[:, t : t + 1], v[:, t : t + 1], ROTARY.angles(at, torch.float32))
        part = slice(t, t + 1)
        alone = single.attend(q_near[:, part], q_far[:, part], one.local, one.call)
        torch.testing.assert_close(alone.out, together.out[:, part], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(one.local.mass, many.local.mass, atol=1e-5, rtol=1e-4)


def test_a_cleared_set_is_not_active():
    layer, kept = Layer(3, 9), RecycledSet(SPEC, 4, 1, N_LOCAL)
    assert not kept.active
    layer.refresh(kept)
    assert kept.active
    kept.attend(*layer.read(1), layer.local, layer.call)
    assert kept.active and kept.bytes > 0
    kept.clear()
    assert not kept.active and len(kept) == 0
