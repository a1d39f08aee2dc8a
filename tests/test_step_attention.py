"""Single tokens of several sessions in one step: against the definition, alone, and without a trace in
the allocator."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import pytest
import torch
from tiny import attached, new_memory, qwen3, read_in_passes, tokens
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longmem.attention import forward
from longmem.config import MemoryConfig
from longmem.memory import ForwardPass, ReadSpan, Scratch
from longmem.memory.working_set import WorkingSet
from longmem.ops.step_attention import StepKeys, attend_naive, attend_steps

SMALL = MemoryConfig(
    n_init=4, n_local=24, block_size=8, topk=3, repr_topk=2, lookup_span=16, stride=4
)

# far keys, pending keys and window of each session
SESSIONS = [[(0, 0, 1)], [(5, 3, 7)], [(0, 2, 6), (9, 0, 6), (33, 4, 6), (1, 0, 2)]]


@pytest.fixture(scope="module")
def routed():
    return attached(qwen3())


@pytest.mark.parametrize("sizes", SESSIONS)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (8, 1)])
@pytest.mark.parametrize("mass_of", [None, "attention", "logits"])
def test_steps_of_many_sessions_equal_the_naive_ones(
    sizes, softcap, with_sinks, heads, kv_heads, mass_of
):
    torch.manual_seed(len(sizes) + heads)
    keys = [_keys(kv_heads, *size, ragged=mass_of == "logits") for size in sizes]
    q_near, q_far = torch.randn(2, len(sizes), heads, 8).mul(2)
    settings = dict(
        scaling=0.3,
        softcap=softcap,
        sinks=torch.randn(heads) if with_sinks else None,
        mass_of=mass_of,
        want_lse=True,
    )
    expected = attend_naive(q_near, q_far, keys, **settings)
    got = attend_steps(q_near, q_far, keys, _nan_scratch(), **settings)
    torch.testing.assert_close(got.out, expected.out, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got.lse, expected.lse, atol=1e-5, rtol=1e-4)
    for s, (far, pending, near) in enumerate(sizes):
        weights = got.weights[s, ..., : far + pending + near]
        torch.testing.assert_close(weights, expected.weights[s, ..., : weights.shape[-1]])
        if mass_of is not None:  # the caller knows that a token does not follow itself
            at = slice(far + pending, far + pending + near - (mass_of == "logits"))
            torch.testing.assert_close(got.mass[s, :, at], expected.mass[s, :, at])


def _keys(kv_heads: int, far: int, pending: int, near: int, ragged: bool) -> StepKeys:
    unused = None
    if ragged and far:
        unused = torch.arange(far) >= torch.randint(0, far + 1, (kv_heads, 1))
    return StepKeys(
        torch.randn(kv_heads, 8, far),
        torch.randn(kv_heads, far, 8),
        torch.randn(kv_heads, 8, pending),
        torch.randn(kv_heads, 8, near),
        torch.randn(kv_heads, pending + near, 8),
        unused,
    )


def _nan_scratch() -> Scratch:
    """Uninitialised memory is NaN here, so that reading it shows."""
    scratch = Scratch()
    take = scratch.take
    scratch.take = lambda *args: take(*args).fill_(torch.nan)  # type: ignore[method-assign]
    return scratch


def step(model, memories, token, refreshes, scratch) -> torch.Tensor:
    """One token of each session, of which some look up; logits ``[S, V]``."""
    spans = [[ReadSpan(1, int(r))] for r in refreshes]
    run = ForwardPass(
        [(m, m.prepare(span)) for m, span in zip(memories, spans, strict=True)], scratch
    )
    logits = forward(model, torch.tensor([token]), run, torch.arange(len(memories)))
    run.finish()
    return logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"far_positions": "ordered"},
        {"selection": "kv_head"},
        {"repr_by": "logits"},
        {"lookup": "all"},
        {"topk_tokens": 16},
        {"repr_topk": 8},
    ],
)
def test_decoding_together_equals_decoding_alone_while_sessions_look_up_at_their_own_times(
    routed, changes
):
    model, info = routed
    config = SMALL.replace(**changes)
    lengths = (20, 90, 131)
    together = [new_memory(info, config) for _ in lengths]
    alone = [new_memory(info, config) for _ in lengths]
    for one, other, n in zip(together, alone, lengths, strict=True):
        for memory in (one, other):
            read_in_passes(model, memory, tokens(n, seed=n), span=16, spans_per_pass=2)
    scratch = Scratch()
    for i in range(14):
        token = [(7 * i + s) % 200 for s in range(3)]
        refreshes = [(i + s) % 5 == 0 for s in range(3)]
        packed = step(model, together, token, refreshes, scratch)
        for s, memory in enumerate(alone):
            single = step(model, [memory], token[s : s + 1], refreshes[s : s + 1], Scratch())
            torch.testing.assert_close(packed[s], single[0], atol=1e-5, rtol=1e-5)
    for one, other in zip(together, alone, strict=True):
        for a, b in zip(one.layers, other.layers, strict=True):
            assert torch.allclose(a.local.mass, b.local.mass, atol=1e-5)
            assert torch.allclose(a.local.raw, b.local.raw, atol=1e-5)


def test_a_step_together_with_a_turn_of_another_session_equals_both_alone(routed):
    model, info = routed
    together, alone = ([new_memory(info, SMALL) for _ in range(3)] for _ in range(2))
    for memories in (together, alone):
        for s, memory in enumerate(memories):
            read_in_passes(model, memory, tokens(70, seed=s), span=16, spans_per_pass=2)
    parts = [([5], [ReadSpan(1, 0)]), (tokens(20), [ReadSpan(12, 12), ReadSpan(8, 8)])]
    parts.append(([9], [ReadSpan(1, 1)]))

    def logits(memories, parts):
        run = ForwardPass([(m, m.prepare(s)) for m, (_, s) in zip(memories, parts, strict=True)])
        ids = torch.tensor([[i for ids, _ in parts for i in ids]])
        found = forward(model, ids, run, torch.arange(ids.shape[1]))
        run.finish()
        return found

    packed = logits(together, parts)
    single = [logits([m], [part]) for m, part in zip(alone, parts, strict=True)]
    assert (packed - torch.cat(single)).abs().max() < 1e-5


def test_a_session_that_fails_in_a_step_leaves_the_others_as_they_were(routed, monkeypatch):
    model, info = routed
    together, alone = ([new_memory(info, SMALL) for _ in range(3)] for _ in range(2))
    for memories in (together, alone):
        for s, memory in enumerate(memories):
            read_in_passes(model, memory, tokens(90, seed=s), span=16, spans_per_pass=2)
    mark = together[1].mark()

    def lost(*args):
        raise OSError("the block's file is gone")

    with monkeypatch.context() as patch:
        patch.setattr(together[1].layers[1], "begin_step", lost)
        run = ForwardPass([(m, m.prepare([ReadSpan(1, 1)])) for m in together])
        logits = forward(model, torch.tensor([[3, 3, 3]]), run, torch.arange(3))
        run.finish()
    assert list(run.failed) == [1] and isinstance(run.failed[1], OSError)
    assert [memory.n_tokens for memory in together] == [91, 90, 91]
    together[1].rewind(mark)
    for s in (0, 2):
        assert (logits[s] - step(model, [alone[s]], [3], [True], Scratch())[0]).abs().max() < 1e-5
    again = step(model, [together[1]], [3], [True], Scratch())
    assert torch.equal(again, step(model, [alone[1]], [3], [True], Scratch()))


class Watch(TorchDispatchMode):
    """Notes which of our lines allocate tensors or wait for values."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated: list[str] = []
        self.waited: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_memory(x) for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        where = _our_line()
        if where is not None:
            made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
            if any(_memory(x) not in given for x in made):
                self.allocated.append(f"{func} at {where}")
            if func.overloadpacket in (
                torch.ops.aten._local_scalar_dense,
                torch.ops.aten.is_nonzero,
                torch.ops.aten.nonzero,
            ):
                self.waited.append(f"{func} at {where}")
        return result


def _memory(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()


def _our_line() -> str | None:
    """The innermost line of longmem/memory or longmem/ops that is running."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename.replace("\\", "/")
        if "longmem/memory/" in name or "longmem/ops/" in name:
            return f"{name.rsplit('longmem/', 1)[1]}:{frame.f_lineno}"
        if "transformers/" in name:
            return None
        frame = frame.f_back
    return None


@contextmanager
def watched():
    with Watch() as watch:
        yield watch


@pytest.mark.parametrize("sessions", [1, 3])
def test_a_recycled_step_allocates_nothing_and_waits_for_nothing(routed, sessions):
    model, info = routed
    memories = [new_memory(info, SMALL) for _ in range(sessions)]
    for s, memory in enumerate(memories):
        read_in_passes(model, memory, tokens(110 + s, seed=s), span=16, spans_per_pass=2)
    scratch = Scratch()
    step(model, memories, [1] * sessions, [True] * sessions, scratch)
    for _ in range(3):
        step(model, memories, [2] * sessions, [False] * sessions, scratch)
    with watched() as watch:
        for _ in range(5):
            step(model, memories, [3] * sessions, [False] * sessions, scratch)
    assert not watch.allocated and not watch.waited
    with watched() as watch:
        step(model, memories, [4] * sessions, [True] * sessions, scratch)
    assert watch.allocated  # a look-up does; so the watch sees what there is to see


def test_only_layers_that_choose_representatives_keep_attention_sums(routed):
    model, info = routed
    memory = new_memory(info, SMALL.replace(lookup_layers=(1,)))
    read_in_passes(model, memory, tokens(60), span=16, spans_per_pass=2)
    assert [layer.local.keeps_mass for layer in memory.layers] == [False, True, False]
    assert [name for name in memory.export().state if name.startswith("mass")] == ["mass.1"]
    everything = new_memory(info, SMALL.replace(repr_topk=8))
    assert not any(layer.local.keeps_mass for layer in everything.layers)


def test_blocks_that_are_chosen_again_are_moved_not_copied_and_lie_as_if_placed_anew(routed):
    _, info = routed
    spec = info.layers[0]
    random = torch.Generator().manual_seed(3)
    sizes = torch.randint(1, 9, (12,), generator=random).tolist()
    blocks = [torch.randn(2, spec.kv_heads, n, spec.dim, generator=random) for n in sizes]
    initial = torch.randn(2, spec.kv_heads, 2, spec.dim, generator=random)
    kept, fresh = (WorkingSet(spec, 2, 4, 8, ordered=False) for _ in range(2))
    kept.set_initial(*initial)
    fresh.set_initial(*initial)
    again = 0
    for _ in range(40):
        n = int(torch.randint(0, 6, (), generator=random))
        ids = torch.randperm(12, generator=random)[:n].sort().values.tolist()
        held = kept.holds(ids, 12)
        assert held == set(ids) & set(kept.stands_for[0] if kept.stands_for else ())
        kept.set_blocks(ids, [None if b in held else blocks[b] for b in ids], 12)
        fresh.clear()
        fresh.set_blocks(ids, [blocks[b] for b in ids])
        assert torch.equal(kept.k, fresh.k) and torch.equal(kept.v, fresh.v)
        again += len(held)
    assert again > 10


def test_blocks_whose_values_became_final_meanwhile_are_asked_for_again(routed):
    _, info = routed
    spec = info.layers[0]
    far = WorkingSet(spec, 0, 4, 8, ordered=False)
    old, new = torch.randn(2, 2, spec.kv_heads, 3, spec.dim)
    far.set_blocks([1, 2, 3], [old, old, old], settled=2)
    assert far.holds([1, 2, 3], settled=2) == {1, 2, 3}
    assert far.holds([1, 2, 3], settled=3) == {1, 3}
    far.clear()
    far.extend_blocks([0, 1, 2], [old, old, old], settled=1)
    far.drop_changed(settled=1)
    assert far.stands_for == [[0, 1, 2]]
    far.drop_changed(settled=2)
    far.extend_blocks([1, 2], [new, new], settled=3)
    assert torch.equal(far.v, torch.cat((old[1], new[1], new[1]), dim=1))
