"""The memory against what it must equal: dense attention, the whole history, itself otherwise cut."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    WholeHistory,
    attached,
    distances,
    new_memory,
    qwen3,
    read,
    read_in_passes,
    tokens,
    whole_history_logits,
)

from longmem.attention import forward
from longmem.config import MemoryConfig
from longmem.memory import ForwardPass, ReadSpan

SMALL = MemoryConfig(
    n_init=4, n_local=24, block_size=8, topk=3, repr_topk=2, lookup_span=16, stride=4
)


@pytest.fixture(scope="module")
def model():
    return qwen3()


@pytest.fixture(scope="module")
def routed(model):
    return attached(model)


def test_a_history_within_the_window_equals_dense_attention(model, routed):
    ids = tokens(60)
    with torch.no_grad():
        dense = model(torch.tensor([ids])).logits[0]
    logits = read_in_passes(
        routed[0], new_memory(routed[1], SMALL.replace(n_local=64)), ids, span=16, spans_per_pass=1
    )
    assert (logits - dense).abs().max() < 1e-4


def test_looking_up_every_block_equals_the_whole_history_at_capped_distance(routed):
    model, info = routed
    ids = tokens(150)
    everything = SMALL.replace(topk=100)
    expected = whole_history_logits(model, info, ids, everything.n_local)
    for boundaries in ("fixed", "turn"):
        memory = new_memory(info, everything.replace(block_boundaries=boundaries))
        logits = read_in_passes(model, memory, ids, span=16, spans_per_pass=2)
        assert memory.n_blocks > 10
        assert (logits - expected).abs().max() < 1e-4


def test_looking_up_few_blocks_differs_from_the_whole_history(routed):
    model, info = routed
    ids = tokens(150)
    logits = read_in_passes(model, new_memory(info, SMALL), ids, span=16, spans_per_pass=1)
    expected = whole_history_logits(model, info, ids, SMALL.n_local)
    assert (logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize("scorer", ["soft_vote", "representative"])
def test_the_length_of_a_forward_pass_does_not_change_the_result(routed, scorer):
    model, info = routed
    ids = tokens(200)
    config = SMALL.replace(scorer=scorer)
    short, long = new_memory(info, config), new_memory(info, config)
    a = read_in_passes(model, short, ids, span=16, spans_per_pass=1)
    b = read_in_passes(model, long, ids, span=16, spans_per_pass=7)  # blocks close inside a pass
    assert (a - b).abs().max() < 1e-4
    for one, other in zip(short.full_layers, long.full_layers, strict=True):
        assert one.closed == other.closed > 15
        assert torch.allclose(
            one.lookup.index.export(0)[0], other.lookup.index.export(0)[0], atol=1e-5
        )
        assert torch.allclose(one.local.mass, other.local.mass, atol=1e-4)


def test_packed_sessions_equal_each_alone(routed):
    model, info = routed
    streams = [tokens(n, seed) for n, seed in ((130, 1), (77, 2), (41, 3))]
    together = [new_memory(info, SMALL) for _ in streams]
    alone = [new_memory(info, SMALL) for _ in streams]
    for at in range(0, 130, 13):
        parts = [s[at : at + 13] for s in streams]
        present = [i for i, part in enumerate(parts) if part]
        run = ForwardPass(
            [(together[i], together[i].prepare([ReadSpan(len(parts[i]), len(parts[i]))]))
             for i in present]
        )  # fmt: skip
        ids = torch.tensor([[t for part in parts for t in part]])
        packed = forward(model, ids, run, torch.arange(ids.shape[1]))
        run.finish()
        expected = [
            read(model, alone[i], parts[i], [ReadSpan(len(parts[i]), len(parts[i]))])
            for i in present
        ]
        assert (packed - torch.cat(expected)).abs().max() < 1e-5


def test_a_recycled_step_reuses_the_blocks_of_the_last_refresh(routed):
    model, info = routed
    memory = new_memory(info, SMALL)
    read_in_passes(model, memory, tokens(160), span=16, spans_per_pass=1)
    before = [layer.fetched for layer in memory.full_layers]
    read(model, memory, [5], [ReadSpan(1, 0)])
    assert [layer.fetched for layer in memory.full_layers] == before
    read(model, memory, [5], [ReadSpan(1, 1)])
    assert [layer.fetched for layer in memory.full_layers] == [n + SMALL.topk for n in before]


def test_a_span_read_token_by_token_equals_the_span_read_at_once(routed):
    model, info = routed
    history, reply = tokens(120), tokens(9, seed=4)
    stepwise, at_once = new_memory(info, SMALL), new_memory(info, SMALL)
    for memory in (stepwise, at_once):
        read_in_passes(model, memory, history, span=16, spans_per_pass=1)
    a = torch.cat(
        [read(model, stepwise, [t], [ReadSpan(1, int(i == 0))]) for i, t in enumerate(reply)]
    )
    b = read(model, at_once, reply, [ReadSpan(len(reply), 1)])
    assert (a - b).abs().max() < 1e-4


def test_rewinding_is_bit_exact_even_after_blocks_closed_and_buffers_moved(routed):
    model, info = routed
    memory, straight = new_memory(info, SMALL), new_memory(info, SMALL)
    for m in (memory, straight):
        read_in_passes(model, m, tokens(90), span=15, spans_per_pass=1)
    for extra in (1, 10, 600):
        mark = memory.mark()
        read_in_passes(model, memory, tokens(extra, seed=9), span=16, spans_per_pass=2)
        memory.rewind(mark)
        assert memory.n_tokens == 90 and memory.n_blocks == straight.n_blocks
    a = read_in_passes(model, memory, tokens(70, seed=5), span=16, spans_per_pass=1)
    b = read_in_passes(model, straight, tokens(70, seed=5), span=16, spans_per_pass=1)
    assert torch.equal(a, b)


def test_rewinding_to_a_time_before_the_initial_tokens_left_the_window(routed):
    model, info = routed
    memory = new_memory(info, SMALL)
    first = read_in_passes(model, memory, tokens(6), span=6, spans_per_pass=1)
    mark = memory.mark()
    read_in_passes(model, memory, tokens(100, seed=2), span=16, spans_per_pass=1)
    memory.rewind(mark)
    assert memory.n_blocks == 0 and memory.window_tokens == len(first)
    a = read_in_passes(model, memory, tokens(100, seed=3), span=16, spans_per_pass=1)
    fresh = new_memory(info, SMALL)
    read_in_passes(model, fresh, tokens(6), span=6, spans_per_pass=1)
    b = read_in_passes(model, fresh, tokens(100, seed=3), span=16, spans_per_pass=1)
    assert torch.equal(a, b)


def test_a_pass_that_fails_half_way_leaves_no_trace_after_a_rewind(routed, monkeypatch):
    model, info = routed
    memory, straight = new_memory(info, SMALL), new_memory(info, SMALL)
    for m in (memory, straight):
        read_in_passes(model, m, tokens(90), span=15, spans_per_pass=1)
    mark = memory.mark()

    def fail(*args):
        raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(memory.layers[1], "read", fail)
        with pytest.raises(MemoryError):
            read(model, memory, tokens(20), [ReadSpan(20, 20)])
    memory.rewind(mark)
    a = read(model, memory, tokens(20), [ReadSpan(20, 20)])
    b = read(model, straight, tokens(20), [ReadSpan(20, 20)])
    assert torch.equal(a, b)
    assert all(
        torch.equal(x, y) for x, y in zip(memory.export().kv, straight.export().kv, strict=True)
    )


def test_a_block_closes_when_n_local_newer_tokens_exist(routed):
    model, info = routed
    memory = new_memory(info, SMALL)
    due = SMALL.n_init + SMALL.block_size + SMALL.n_local
    read_in_passes(model, memory, tokens(due - 1), span=1, spans_per_pass=8)
    read(model, memory, [3], [ReadSpan(1, 1)])  # at its first token, due - 1 tokens exist
    assert memory.n_blocks == 0
    read(model, memory, [3], [ReadSpan(1, 1)])
    assert memory.n_blocks == 1


def test_turn_boundaries_end_blocks_at_turns_and_at_block_size(routed):
    model, info = routed
    memory = new_memory(info, SMALL.replace(block_boundaries="turn"))
    starts = [0, 6, 11, 31, 34]
    read(model, memory, tokens(40), [ReadSpan(n, n) for n in (6, 5, 16, 4, 3, 6)], starts)
    assert memory.table.edges == [4, 6, 11, 19, 27, 31, 34]


def test_layers_that_do_not_look_up_share_the_choice_of_the_layer_below(routed):
    model, info = routed
    config = SMALL.replace(lookup_layers=(1,))
    memory = new_memory(info, config)
    read_in_passes(model, memory, tokens(120), span=16, spans_per_pass=1)
    first, second, third = memory.full_layers
    assert first.fetched == 0
    assert second.fetched == third.fetched > 0


def test_ordered_far_positions_see_blocks_at_their_rank(routed):
    """Against the definition: rank r at distance n_local + r * block_size, newest first."""
    _, info = routed
    from longmem.memory.working_set import WorkingSet

    spec = info.layers[0]
    far = WorkingSet(spec, n_init=2, topk=3, block_size=8, ordered=True)
    blocks = [torch.randn(2, spec.kv_heads, n, spec.dim) for n in (8, 5, 7)]
    far.set_initial(*torch.randn(2, spec.kv_heads, 2, spec.dim))
    far.set_blocks(range(3), blocks)
    q = torch.randn(1, spec.dim)
    at = 2
    for rank, kv in zip((2, 1, 0), blocks, strict=True):
        n = kv.shape[2]
        turned = spec.rotary.rotate(
            q, spec.rotary.angles(torch.tensor([24 + rank * 8]), torch.float32)
        )
        seen = spec.rotary.rotate(q, spec.rotary.angles(torch.tensor([24]), torch.float32))
        expected = turned @ kv[0, 0].T
        assert torch.allclose(seen @ far.k[0, at : at + n].T, expected, atol=1e-4)
        at += n
    assert at == far.k.shape[1]


def test_representatives_are_the_keys_that_got_most_attention_in_the_window(routed):
    """The attention sums, recomputed naively over the whole history."""
    model, info = routed
    ids = tokens(60)
    config = SMALL.replace(topk=100, repr_topk=2)
    memory = new_memory(info, config)
    read_in_passes(model, memory, ids, span=12, spans_per_pass=1)
    read(model, memory, [1], [ReadSpan(1, 1)])
    seen = {}

    class Recorder:
        def attend(self, layer, q, k, v, call):
            seen[layer] = (q[0].clone(), k[0].clone(), call.scaling)
            return WholeHistory(info, config.n_local).attend(layer, q, k, v, call)

    forward(model, torch.tensor([[*ids, 1]]), Recorder(), torch.tensor([0]))
    for layer in memory.full_layers:
        keys = _naive_representatives(info, layer, *seen[layer.spec.index], config)
        got, counts = layer.lookup.index.export(0)
        assert counts.tolist() == [2] * len(keys)
        for block, expected in enumerate(keys):
            for head in range(layer.spec.kv_heads):
                a = {
                    tuple(row)
                    for row in (got[2 * block : 2 * block + 2, head] * 100).round().int().tolist()
                }
                b = {tuple(row) for row in (expected[head] * 100).round().int().tolist()}
                assert a == b


def _naive_representatives(info, layer, q, k, scaling, config):
    weights = WholeHistory(info, config.n_local).weights(layer.spec.index, q, k, scaling)
    weights = weights.masked_fill(distances(k.shape[1]) >= config.n_local, 0)
    mass = weights.unflatten(0, (k.shape[0], -1)).sum((1, 2))
    found = []
    for block in range(max(layer.closed, 0)):
        start, stop = layer.table.span(block)
        best = mass[:, start:stop].topk(config.repr_topk, dim=1).indices + start
        found.append(k.gather(1, best[..., None].expand(-1, -1, k.shape[2])))
    return found
