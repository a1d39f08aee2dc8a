"""The block index, the look-ups of a pass, and where blocks end."""

from __future__ import annotations

import pytest
import torch

from longmem.errors import CorruptDataError
from longmem.memory.blocks import BlockTable, with_neighbours
from longmem.memory.index import SUB_BLOCK, BlockIndex
from longmem.memory.lookups import PassLookups
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.retrieval import get_scorer

HEADS, KV_HEADS, DIM, N_REPR = 4, 2, 8, 4
SCORERS = ["soft_vote", "representative", "bounds", "sub_block"]


def new_index(form="tokens"):
    device = torch.device("cpu")
    spec = LayerSpec(0, HEADS, KV_HEADS, DIM, None, None, 0.5, torch.float32, device)
    return BlockIndex(spec, N_REPR, form)


def random_blocks(n, seed=0):
    """Raw keys and masses of n blocks of 1 to 40 tokens."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 41, (n,), generator=g).tolist()
    return [
        (torch.randn(KV_HEADS, t, DIM, generator=g), torch.rand(KV_HEADS, t, generator=g))
        for t in sizes
    ]


def filled(form, blocks):
    index = new_index(form)
    for raw, mass in blocks:
        index.add(raw, mass)
    return index


def queries(n, seed=5):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(HEADS, 1 + i % 3, DIM, generator=g) for i in range(n)]


def naive_rows(form, raw, mass):
    """What the index keeps of a block, token by token: a list of rows per KV head."""
    heads = []
    for keys, weight in zip(raw, mass, strict=True):
        n = len(keys)
        if form == "tokens":
            order = sorted(range(n), key=lambda t: -float(weight[t]))[:N_REPR]
            heads.append([keys[t] for t in (order if n > N_REPR else range(n))])
        elif form == "bounds":
            columns = keys.T.tolist()
            extremes = [max(c) for c in columns] + [min(c) for c in columns]
            heads.append([torch.tensor(extremes)])
        else:
            parts = [keys[t : t + SUB_BLOCK] for t in range(0, n, SUB_BLOCK)]
            heads.append([sum(part) / len(part) for part in parts])
    return heads


@pytest.mark.parametrize("form", ["tokens", "bounds", "means"])
def test_a_block_is_summarised_as_its_form_says(form):
    blocks = random_blocks(60)
    rows = filled(form, blocks).rows
    assert rows.n_blocks == 60
    for b, (raw, mass) in enumerate(blocks):
        expected = torch.stack([torch.stack(head) for head in naive_rows(form, raw, mass)])
        torch.testing.assert_close(rows.part(b, b + 1).keys, expected)


@pytest.mark.parametrize("form", ["tokens", "bounds", "means"])
def test_an_exported_index_loads_to_the_same_rows(form):
    index = filled(form, random_blocks(50))
    assert index.export(0)[1].dtype == torch.int32
    early = filled(form, random_blocks(50)[:20]).export(0)
    late = index.export(20)
    again = new_index(form)
    again.load(*(torch.cat(pair) for pair in zip(early, late, strict=True)))
    assert len(again) == 50
    assert torch.equal(again.rows.keys, index.rows.keys)
    assert torch.equal(again.rows.starts, index.rows.starts)
    for raw, mass in random_blocks(30, seed=1):
        again.add(raw, mass)
        index.add(raw, mass)
    assert torch.equal(again.rows.keys, index.rows.keys)


def test_truncating_brings_an_index_back():
    blocks = random_blocks(40)
    index = filled("tokens", blocks)
    index.drop_front(30)
    index.truncate(25)
    index.drop_front(10)
    fewer = filled("tokens", blocks[:25])
    fewer.drop_front(10)
    assert len(index) == len(fewer) == 25
    assert torch.equal(index.rows.keys, fewer.rows.keys)


def test_dropped_blocks_are_no_candidates_and_the_others_keep_their_numbers():
    blocks = random_blocks(60)
    index = filled("tokens", blocks)
    rows = index.rows
    index.drop_front(45)
    assert (index.first, len(index), index.rows.n_blocks) == (45, 60, 15)
    assert torch.equal(index.rows.keys, rows.part(45, 60).keys)
    index.release(40)  # blocks 40 .. 44 may come back
    with pytest.raises(AssertionError, match="released"):
        index.drop_front(39)
    index.drop_front(40)
    assert torch.equal(index.rows.keys, rows.part(40, 60).keys)
    for raw, mass in random_blocks(60, seed=2):
        index.add(raw, mass)
    assert len(index) == 120
    assert torch.equal(index.rows.part(0, 20).keys, rows.part(40, 60).keys)
    assert torch.equal(
        index.export(60)[0], filled("tokens", random_blocks(60, seed=2)).export(0)[0]
    )


def test_a_long_stream_under_retention_needs_bounded_room():
    index = new_index()
    raw, mass = random_blocks(1)[0]
    for n in range(1, 5001):
        index.add(raw, mass)
        index.drop_front(max(0, n - 50))
        index.release(n)
    assert index.rows.n_blocks == 50
    assert index.bytes < 200_000 < filled("tokens", [(raw, mass)] * 5000).bytes


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("group_bytes", [1, 3000, 2**20])
def test_look_ups_of_a_pass_equal_one_at_a_time_while_blocks_close(name, group_bytes):
    scorer, blocks = get_scorer(name), random_blocks(90)
    index = filled(scorer.form, blocks[:60])
    later = iter(blocks[60:])
    lookups = PassLookups(scorer, index, group_bytes=group_bytes, tile_bytes=2000)
    spans = [None if i % 7 == 3 else q for i, q in enumerate(queries(30))]
    for _ in range(2):  # two passes through the same object
        lookups.begin(spans)
        for i, q in enumerate(spans):
            if i % 2 or i > 20:
                for block in (next(later, None) for _ in range(i % 4)):
                    if block is not None:
                        index.add(*block)
            index.drop_front(max(0, len(index) - 70))
            if q is not None:
                expected = scorer.score(q, index.rows)
                assert expected.shape == (KV_HEADS, len(index) - index.first)
                torch.testing.assert_close(lookups.scores(i), expected, atol=1e-5, rtol=1e-5)
    assert len(index) == 90


def test_a_pass_may_begin_before_any_block_closed():
    scorer, index = get_scorer("soft_vote"), new_index()
    lookups = PassLookups(scorer, index)
    lookups.begin(queries(3))
    assert lookups.scores(0).shape == (KV_HEADS, 0)
    index.add(*random_blocks(1)[0])
    assert lookups.scores(1).shape == (KV_HEADS, 1)


def test_candidates_may_all_be_replaced_within_a_pass():
    scorer, blocks = get_scorer("soft_vote"), random_blocks(60)
    index = filled("tokens", blocks[:20])
    lookups = PassLookups(scorer, index)
    lookups.begin(queries(2))
    lookups.scores(0)
    for block in blocks[20:]:
        index.add(*block)
    index.drop_front(40)
    torch.testing.assert_close(lookups.scores(1), scorer.score(queries(2)[1], index.rows))


def test_a_turn_too_close_to_the_last_edge_ends_no_block():
    table = BlockTable(4, 16, "turn", n_local=32, min_block=5)
    for turn in (6, 12, 14, 30, 34, 35):
        table.begin_turn(turn)
    table.extend(60)
    assert table.edges == [4, 12, 28, 34, 50]


def test_edges_of_a_surprise_table_come_from_outside_alone():
    table = BlockTable(4, 16, "surprise", n_local=32)
    table.begin_turn(20)
    table.extend(100)
    assert table.edges == [4]
    table.append([9, 25])
    assert table.span(1) == (9, 25)
    assert table.closed(57) == 2


def test_neighbours_of_the_best_blocks_come_first_and_none_twice():
    assert with_neighbours([7, 3], 0, 0, 10) == [7, 3]
    assert with_neighbours([7, 3], 3, 0, 10) == [7, 3, 6, 8, 2]
    assert with_neighbours([7, 8], 2, 0, 10) == [7, 8, 6, 9]
    assert with_neighbours([9, 5], 4, 5, 10) == [9, 5, 8, 6]
    assert with_neighbours([1, 0], 4, 0, 2) == [1, 0]


class Unreadable:
    """A source of rows that fails whoever reads one."""

    def read_blocks(self, name, ranges):
        raise AssertionError(f"{name} was read")


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    "damage", ["a block too many", "a block too few", "a row too many", "a row too few"]
)
def test_a_stored_index_that_is_not_the_sessions_is_refused_before_rows_are_read(damage, lazy):
    rows, counts = filled("tokens", random_blocks(12)).export(0)
    if damage.startswith("a block"):
        counts = torch.cat((counts, counts[-1:])) if damage.endswith("many") else counts[:-1]
    else:
        rows = torch.cat((rows, rows[-1:])) if damage.endswith("many") else rows[:-1]
    tensors = {"counts.0": counts, "representatives.0": rows}
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if lazy:
        del tensors["representatives.0"]
    with pytest.raises(CorruptDataError, match="rebuild=True"):
        new_index().restore(Stored(tensors, lengths, Unreadable()), 12, 0)
