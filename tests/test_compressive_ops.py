"""The compressive memory's operators: chunked against naive, and what the rules promise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longmem.ops.compressive import (
    EPS,
    CompressiveState,
    FeatureMap,
    get_feature_map,
    read_and_fold,
    read_and_fold_naive,
    retrieve,
    retrieve_naive,
    update,
    update_naive,
    warn_if_fixed,
)

DIM, KV_HEADS = 8, 2
RULES = ["linear", "delta", "delta_literal"]
MAPS = ["elu", "dpfp", "learned"]


def feature_map(name: str) -> FeatureMap:
    weight = torch.randn(KV_HEADS, DIM, DIM, generator=torch.Generator().manual_seed(5))
    return get_feature_map(name, weight if name == "learned" else None)


def empty(features: FeatureMap, batch: tuple[int, ...] = ()) -> CompressiveState:
    return CompressiveState.empty(KV_HEADS, features.width(DIM), DIM, batch=batch)


def draw(tokens: int, group: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = [(KV_HEADS * group, tokens, DIM), (KV_HEADS, tokens, DIM), (KV_HEADS, tokens, DIM)]
    return tuple(torch.randn(shape, generator=g) for shape in shapes)  # type: ignore[return-value]


def same(a: Tensor, b: Tensor) -> None:
    """Equal to 1e-5 of the largest entry: sums over many tokens have no scale of their own."""
    scale = max(1.0, float(b.abs().max()))
    torch.testing.assert_close(a / scale, b / scale, atol=1e-5, rtol=0)


def close(a: CompressiveState, b: CompressiveState) -> None:
    same(a.M, b.M)
    same(a.z, b.z)
    assert a.tokens == b.tokens


@pytest.fixture(autouse=True)
def poisoned() -> object:
    """Memory that is allocated but not written holds NaN."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("tokens", "group"), [(1, 2), (63, 4), (64, 1), (65, 2), (200, 1), (200, 2)]
)
def test_chunks_read_and_folded_at_once_equal_the_naive_loop(rule, name, tokens, group):
    features, (q, k, v) = feature_map(name), draw(tokens, group)
    fast, slow = empty(features), empty(features)
    update(fast, features(k[:, :5] + 1), v[:, :5], rule)
    update_naive(slow, features(k[:, :5] + 1), v[:, :5], rule)
    got = read_and_fold(q, k, v, fast, features, chunk=64, rule=rule)
    expected = read_and_fold_naive(q, k, v, slow, features, chunk=64, rule=rule)
    for one, other in zip(got, expected, strict=True):
        same(one, other)
    close(fast, slow)
    assert fast.tokens == min(5, tokens) + tokens // 64 * 64


@pytest.mark.parametrize("rule", RULES)
def test_how_the_stream_is_cut_into_calls_changes_nothing(rule):
    features, (q, k, v) = feature_map("elu"), draw(50, 2)
    whole, cut = empty(features), empty(features)
    expected = read_and_fold(q, k, v, whole, features, chunk=8, rule=rule)
    parts, folded = [], 0
    for start, stop in [(0, 3), (3, 8), (8, 9), (9, 30), (30, 50)]:
        parts.append(
            read_and_fold(
                q[:, start:stop], k[:, folded:stop], v[:, folded:stop], cut, features,
                chunk=8, rule=rule,
            )
        )  # fmt: skip
        folded = cut.tokens
    torch.testing.assert_close(torch.cat([p[0] for p in parts], 1), expected[0])
    torch.testing.assert_close(torch.cat([p[1] for p in parts], 1), expected[1])
    close(cut, whole)


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_equals_each_of_its_rows_alone(rule):
    features = feature_map("dpfp")
    rows = [draw(40, 2, seed) for seed in (1, 2, 3)]
    state = empty(features, batch=(3,))
    q, k, v = (torch.stack(each) for each in zip(*rows, strict=True))
    held, mass = read_and_fold(q, k, v, state, features, chunk=16, rule=rule)
    for i, row in enumerate(rows):
        alone = empty(features)
        expected = read_and_fold(*row, alone, features, chunk=16, rule=rule)
        torch.testing.assert_close(held[i], expected[0])
        torch.testing.assert_close(mass[i], expected[1])
        close(CompressiveState(state.M[i], state.z[i], state.tokens), alone)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("decay", [0.5, torch.tensor([0.25, 1.0])])
def test_decay_forgets_its_share_at_every_chunk(rule, decay):
    features, (q, k, v) = feature_map("elu"), draw(24, 2)
    fast, slow = empty(features), empty(features)
    got = read_and_fold(q, k, v, fast, features, chunk=8, rule=rule, decay=decay)
    expected = read_and_fold_naive(q, k, v, slow, features, chunk=8, rule=rule, decay=decay)
    same(got[0], expected[0])
    same(got[1], expected[1])
    close(fast, slow)
    before = fast.clone()
    update(fast, features(k[:, :4]), v[:, :4], "linear", decay)
    added = features(k[:, :4]).sum(1)
    share = torch.as_tensor(decay).expand(KV_HEADS)[:, None]
    torch.testing.assert_close(fast.z, share * before.z + added)


def test_query_heads_are_grouped_as_repeat_interleave_does():
    features, (q, k, v) = feature_map("elu"), draw(9, 4)
    state = empty(features)
    update(state, features(k), v, "linear")
    held, mass = retrieve(features(q), state)
    wide = CompressiveState(state.M.repeat_interleave(4, 0), state.z.repeat_interleave(4, 0))
    torch.testing.assert_close((held, mass), retrieve(features(q), wide))
    torch.testing.assert_close((held, mass), retrieve_naive(features(q), state))


def retrieved_after_each_telling(rule: str, times: int) -> list[Tensor]:
    features, (_, k, v) = feature_map("elu"), draw(1, 1)
    state, answers = empty(features), []
    for _ in range(times):
        update(state, features(k), v, rule)
        held, mass = retrieve(features(k), state)
        answers.append((held / mass[..., None])[:, 0] / v[:, 0])
    return answers


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_binding_told_again_is_still_retrieved(rule):
    for answer in retrieved_after_each_telling(rule, times=4):
        torch.testing.assert_close(answer, torch.ones_like(answer))


def test_the_delta_rule_as_printed_halves_a_binding_told_again():
    first, *later = retrieved_after_each_telling("delta_literal", times=4)
    torch.testing.assert_close(first, torch.ones_like(first))
    for answer in later:
        torch.testing.assert_close(answer, torch.full_like(answer, 0.5))


def test_the_delta_rule_replaces_what_a_key_held():
    features, (_, k, v) = feature_map("elu"), draw(1, 1)
    answers = {}
    for rule in ("linear", "delta"):
        state = empty(features)
        update(state, features(k), v, rule)
        update(state, features(k), v + 1, rule)
        held, mass = retrieve(features(k), state)
        answers[rule] = held / mass[..., None]
    torch.testing.assert_close(answers["delta"], v + 1)
    torch.testing.assert_close(answers["linear"], v + 0.5)


def folded(*bindings: tuple[list[float], list[float]], rule: str = "delta") -> CompressiveState:
    """A memory told bindings of features ``[4]`` and values ``[2]``, by the naive and the fast fold."""
    fast, slow = (CompressiveState.empty(1, 4, 2) for _ in range(2))
    for key, value in bindings:
        k, v = torch.tensor([[key]]), torch.tensor([[value]])
        update(fast, k, v, rule)
        update_naive(slow, k, v, rule)
    close(fast, slow)
    return fast


CORRECTED = [([4.0, 0.0, 0.0, 0.0], [1.0, 0.0]), ([1.0, 1.0, 0.0, 0.0], [0.0, 1.0])]
"""The second binding is corrected along an entry that z, which has the first, knows nothing of."""


def test_what_the_normaliser_does_not_cover_is_no_reading_without_bound():
    state = folded(*CORRECTED)
    for query in ([0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1e-4, 0.0], [1e-4, 1.0, 0.0, 0.0]):
        q = torch.tensor([[query]])
        held, mass = retrieve(q, state, "delta")
        assert (held / mass.clamp(min=EPS)[..., None]).norm() <= 150  # |q M| / (0.01 |q|^2)
        torch.testing.assert_close((held, mass), retrieve_naive(q, state, "delta"))
    covered = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert torch.equal(retrieve(covered, state, "delta")[0], retrieve(covered, state)[0])


def test_a_key_that_the_normaliser_does_not_cover_is_written_as_it_is():
    state = folded(*CORRECTED, ([0.0, 1.0, 0.0, 0.0], [3.0, 3.0]))
    assert state.M.abs().max() < 10
    torch.testing.assert_close(state.z[0, :2], torch.tensor([4.0, 1.0]))


def test_under_the_delta_rule_the_normaliser_grows_on_if_features_are_sparse_and_chunks_short():
    features, (_, k, v) = feature_map("dpfp"), draw(128, 1)
    state, sizes = empty(features), []
    for start in range(0, 128, 16):
        part = slice(start, start + 16)
        update(state, features(k[:, part]), v[:, part], "delta")
        sizes.append(float(state.z.sum()))
    assert sizes[-1] > 1.05 * sizes[0]


@pytest.mark.parametrize("name", MAPS)
def test_under_the_delta_rule_one_long_chunk_covers_all_that_follows(name):
    features, (_, k, v) = feature_map(name), draw(512, 1)
    state = empty(features)
    update(state, features(k[:, :64]), v[:, :64], "delta")
    first = state.z
    update(state, features(k[:, 64:]), v[:, 64:], "delta")
    torch.testing.assert_close(state.z, first, rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("rule", "name", "chunk", "told"),
    [
        ("delta", "dpfp", 16, False),
        ("delta", "learned", 16, False),
        ("delta", "dpfp", 17, True),
        ("delta", "elu", 8, True),
        ("linear", "elu", 128, False),
        ("delta_literal", "elu", 128, False),
    ],
)
def test_settings_whose_normaliser_does_not_grow_are_warned_of(recwarn, rule, name, chunk, told):
    warn_if_fixed(rule, name, chunk)
    assert [("stops growing" in str(each.message)) for each in recwarn] == [True] * told


def test_the_share_that_z_grows_by_is_a_constant_to_gradients():
    features, (_, k, v) = feature_map("dpfp"), draw(8, 1)
    state = empty(features)
    update(state, features(k[:, :1]), v[:, :1], "delta")
    phi = features(draw(8, 1, seed=2)[1]).requires_grad_()
    before, share = state.z, 1 - (phi @ state.z[..., None])[..., 0] / phi.square().sum(-1)
    share = share.clamp(0, 1).detach()
    assert ((share > 0.05) & (share < 0.95)).any()
    update(state, phi, v, "delta")
    torch.testing.assert_close(state.z - before, (phi * share[..., None]).sum(1))
    (state.z * torch.arange(state.z.shape[-1])).sum().backward()
    expected = share[..., None] * torch.arange(state.z.shape[-1])
    torch.testing.assert_close(phi.grad, expected.expand_as(phi))


def test_an_unknown_rule_is_refused():
    features, (_, k, v) = feature_map("elu"), draw(2, 1)
    with pytest.raises(ValueError, match="no rule 'foo'; choose one of linear, delta"):
        update(empty(features), features(k), v, "foo")


@pytest.mark.parametrize("name", MAPS)
def test_features_are_float32_and_never_negative(name):
    features, (q, _, _) = feature_map(name), draw(7, 2)
    out = features(q.bfloat16() * 9)
    assert out.dtype == torch.float32
    assert out.shape == (*q.shape[:-1], features.width(DIM))
    assert out.min() >= 0


def test_dpfp_multiplies_neighbours_of_the_rectified_halves():
    x = torch.tensor([[[2.0, -3.0]]])  # rectified halves: 2 0 0 3
    out = get_feature_map("dpfp")(x)[0, 0].tolist()
    assert out == [6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6]


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_memory_answers_zeros(rule):
    features, (q, k, v) = feature_map("elu"), draw(5, 2)
    state = empty(features)
    held, mass = read_and_fold(q, k, v, state, features, chunk=8, rule=rule)
    assert held.eq(0).all() and mass.eq(0).all() and state.tokens == 0
    update(state, features(k[:, :0]), v[:, :0], rule)
    assert state.tokens == 0 and state.M.eq(0).all()


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_tokens_are_folded_in_float32(rule):
    features, (_, k, v) = feature_map("elu"), draw(32, 1)
    half, full = empty(features), empty(features)
    for start in range(0, 32, 8):
        part = slice(start, start + 8)
        update(half, features(k[:, part].bfloat16()), v[:, part].bfloat16(), rule)
        update(full, features(k[:, part].bfloat16().float()), v[:, part].bfloat16().float(), rule)
    assert half.M.dtype == half.z.dtype == torch.float32
    close(half, full)


def test_a_snapshot_stays_what_it_was():
    features, (_, k, v) = feature_map("elu"), draw(8, 1)
    state = empty(features)
    update(state, features(k), v, "delta")
    snapshot, kept = state.clone(), state.M.clone()
    update(state, features(k + 1), v, "delta")
    assert torch.equal(snapshot.M, kept) and snapshot.tokens == 8 and not torch.equal(state.M, kept)
    state.copy_(snapshot)
    assert torch.equal(state.M, kept) and state.tokens == 8
    state.clear()
    assert state.M.eq(0).all() and torch.equal(snapshot.M, kept)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_reach_keys_of_earlier_chunks_until_the_state_is_detached(rule):
    features, (q, k, v) = feature_map("elu"), draw(24, 2)
    k.requires_grad_()
    held, _ = read_and_fold(q, k, v, empty(features), features, chunk=8, rule=rule)
    held[:, 16:].sum().backward()
    assert k.grad is not None
    assert k.grad[:, :16].abs().amax(-1).min() > 0 and k.grad[:, 16:].eq(0).all()
    state = empty(features)
    update(state, features(k), v, rule)
    assert not state.detach().M.requires_grad and state.M.requires_grad


def test_an_unknown_feature_map_or_a_missing_weight_is_refused():
    with pytest.raises(ValueError, match='choose "elu", "dpfp" or "learned"'):
        get_feature_map("relu")
    with pytest.raises(ValueError, match="weights of its own"):
        get_feature_map("learned")
