"""Two-level look-ups: groups of similar rows, the groups a look-up reads, and where their rows lie."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import SMALL, chatter
from test_block_index import HEADS, KV_HEADS, queries, random_blocks
from test_resume import probe_logits

from longmem import CorruptDataError, Engine, MemoryConfig
from longmem.memory.index import BlockIndex
from longmem.memory.lookup import Lookup
from longmem.memory.lookups import PassLookups
from longmem.memory.pages import GroupPages
from longmem.memory.shelves import Grid
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.retrieval import get_scorer, group_order
from longmem.retrieval.grouping import _ITERATIONS
from longmem.retrieval.summaries import PEAK
from longmem.stores import SQLiteStore

DIM, N_REPR = 8, 4
GRID = Grid(above=0, shelf=10, group=6, probe=3)
SPEC = LayerSpec(0, HEADS, KV_HEADS, DIM, None, None, 0.5, torch.float32, torch.device("cpu"))
TWO_LEVELS = SMALL.replace(
    two_level_above=0, two_level_shelf=4, two_level_group=8, two_level_probe=2
)


class Tensors:
    """A store that keeps what an index exports, and counts what is read of it."""

    def __init__(self):
        self.blocks = {}
        self.reads = []

    def keep(self, tensors):
        for name, tensor in tensors.items():
            self.blocks[name] = torch.cat((self.blocks.get(name, tensor[:0]), tensor))

    def stored(self):
        eager = {k: t for k, t in self.blocks.items() if k.startswith(("counts.", "shelf_"))}
        eager.pop("shelf_rows.0.10x6", None)
        return Stored(eager, {k: len(t) for k, t in self.blocks.items()}, self)

    def read_blocks(self, name, spans):
        self.reads.append((name, tuple(spans)))
        return [self.blocks[name][start:stop] for start, stop in spans]


def new_index(grid=GRID):
    return BlockIndex(SPEC, N_REPR, grid=grid)


def filled(blocks, grid=GRID):
    index = new_index(grid)
    for raw, mass in blocks:
        index.add(raw, mass)
    return index


def commit(index, kept, since):
    keys, counts = index.export(since)
    kept.keep({"representatives.0": keys, "counts.0": counts} | index.shelves.export())
    index.release(index.first)


def one_look_up(index, q):
    lookups = PassLookups(get_scorer("soft_vote"), index)
    lookups.begin([q])
    return lookups.scores(0)


def naive_order(rows, size):
    """`group_order` of one head's rows, number by number."""
    groups = math.ceil(len(rows) / size)
    places = list(range(len(rows)))
    if groups < 2:
        return places
    dims = range(rows.shape[1])
    mean = [sum(float(r[c]) for r in rows) / len(rows) for c in dims]
    centred = [[float(r[c]) - mean[c] for c in dims] for r in rows]
    scatter = [[sum(r[a] * r[b] for r in centred) for b in dims] for a in dims]
    direction = scatter[max(dims, key=lambda c: scatter[c][c])]
    for _ in range(_ITERATIONS):
        direction = [sum(scatter[a][b] * direction[b] for b in dims) for a in dims]
        length = math.sqrt(sum(x * x for x in direction))
        direction = [x / length for x in direction]
    places.sort(key=lambda i: sum(float(rows[i][c]) * direction[c] for c in dims))
    middle = groups // 2 * size
    halves = places[:middle], places[middle:]
    return [half[j] for half in halves for j in naive_order(rows[half], size)]


def naive_scores(blocks, q, grid, first=0):
    """What a two-level look-up of q ``[H, T, D]`` gives every block, row by row: [KV head][block]."""
    full = filled(blocks, None)
    starts, keys = full.rows.starts.tolist(), full.rows.keys
    mean, per_head = q.mean(1) * SPEC.scaling, HEADS // KV_HEADS
    scores = [[0.0] * len(blocks) for _ in range(KV_HEADS)]
    for kv in range(KV_HEADS):
        own = mean[kv * per_head : (kv + 1) * per_head]
        groups = []  # of rows (block, key)
        shelves = range(first // grid.shelf, len(blocks) // grid.shelf)
        for shelf in shelves:
            span = range(shelf * grid.shelf, (shelf + 1) * grid.shelf)
            rows = [(b, keys[kv, r]) for b in span for r in range(starts[b], starts[b + 1])]
            order = naive_order(torch.stack([key for _, key in rows]), grid.group)
            placed = [rows[i] for i in order]
            groups += [placed[i : i + grid.group] for i in range(0, len(rows), grid.group)]
        centre, spread = [], []
        for group in groups:
            stack = torch.stack([key for _, key in group])
            centre.append(own @ stack.mean(0))
            spread.append(own**2 @ stack.var(0, correction=0))
        peak = torch.stack([c + PEAK * s.sqrt() for c, s in zip(centre, spread, strict=True)])
        behind = (peak - peak.max(0).values).max(1).values.tolist()
        best = sorted(range(len(groups)), key=lambda g: -behind[g])[: grid.probe]
        read = [row for g in best for row in groups[g] if row[0] >= first]
        loose = range(max(first, shelves.stop * grid.shelf), len(blocks))
        read += [(b, keys[kv, r]) for b in loose for r in range(starts[b], starts[b + 1])]
        for head, query in enumerate(own):
            votes = [math.exp(float(query @ key)) for _, key in read]
            unread = sum(
                len(group) * math.exp(float(centre[g][head] + spread[g][head] / 2))
                for g, group in enumerate(groups)
                if g not in best
            )
            for (b, _), vote in zip(read, votes, strict=True):
                scores[kv][b] += vote / (sum(votes) + unread)
    return torch.tensor(scores)[:, first:]


def test_rows_are_halved_along_the_direction_of_most_spread():
    torch.manual_seed(0)
    rows = torch.randn(2, 45, 4) * torch.tensor([1.0, 3.0, 0.5, 1.5])
    for size in (4, 7, 45, 60):
        got = group_order(rows, size)
        assert got.tolist() == [naive_order(head, size) for head in rows]


def test_groups_of_equal_rows_keep_their_order_and_groups_of_others_are_tight():
    assert group_order(torch.ones(1, 9, 3), 2).tolist() == [list(range(9))]
    torch.manual_seed(1)
    rows = torch.randn(2, 2000, 4)
    order = group_order(rows, 50)
    assert torch.equal(order.sort(1).values, torch.arange(2000).expand(2, -1))
    grouped = torch.stack([head[o] for head, o in zip(rows, order, strict=True)])
    assert grouped.view(2, 40, 50, 4).var(2).mean() < 0.3 * rows.var(1).mean()


@pytest.mark.parametrize("first", [0, 13])
def test_a_look_up_reads_the_best_groups_and_estimates_the_others(first):
    blocks = random_blocks(47)
    index = filled(blocks)
    index.drop_front(first)
    for q in queries(6):
        torch.testing.assert_close(
            one_look_up(index, q), naive_scores(blocks, q, GRID, first), atol=1e-5, rtol=1e-4
        )


def test_reading_all_groups_equals_scoring_every_row():
    blocks = random_blocks(64)
    index = filled(blocks, Grid(0, 10, 6, 1000))
    for first in (0, 25):
        index.drop_front(first)
        full = filled(blocks, None)
        full.drop_front(first)
        for q in queries(5):
            scores, expected = one_look_up(index, q), one_look_up(full, q)
            torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
            assert torch.equal(scores.topk(4).indices, expected.topk(4).indices)


@pytest.mark.parametrize("group_bytes", [1, 2**20])
def test_look_ups_of_a_pass_equal_one_at_a_time_while_shelves_fill(group_bytes):
    scorer, later = get_scorer("soft_vote"), iter(random_blocks(40, seed=3))
    index = filled(random_blocks(35), Grid(above=38, shelf=10, group=6, probe=3))
    lookups = PassLookups(scorer, index, group_bytes=group_bytes, tile_bytes=2000)
    spans = queries(30)
    lookups.begin(spans)
    grouped = set()
    for i, q in enumerate(spans):
        if i % 2:
            index.add(*next(later))
            index.add(*next(later))
        index.drop_front(max(0, len(index) - 45))
        grouped.add(index.grouped)
        torch.testing.assert_close(lookups.scores(i), one_look_up(index, q), atol=1e-5, rtol=1e-5)
    assert grouped == {False, True}


def test_groups_do_not_depend_on_what_was_forgotten_in_between():
    blocks = random_blocks(60)
    index = filled(blocks[:28])
    for raw, mass in random_blocks(25, seed=8):
        index.add(raw, mass)
    index.truncate(28)
    for raw, mass in blocks[28:]:
        index.add(raw, mass)
    straight = filled(blocks)
    for q in queries(4):
        assert torch.equal(one_look_up(index, q), one_look_up(straight, q))


def test_a_restored_index_reads_rows_of_groups_by_and_by_and_gives_equal_scores():
    kept, blocks = Tensors(), random_blocks(58)
    index = new_index()
    index.shelves.attach(kept)
    for at in (0, 25, 41):
        for raw, mass in blocks[at : {0: 25, 25: 41, 41: 58}[at]]:
            index.add(raw, mass)
        commit(index, kept, at)
    again = new_index()
    again.shelves.attach(kept)
    again.restore(kept.stored(), 58, 0)
    assert kept.reads == [("representatives.0", ((int(kept.blocks["counts.0"][:50].sum()), len(
        kept.blocks["representatives.0"]
    )),))]  # fmt: skip
    for q in queries(5):
        assert torch.equal(one_look_up(again, q), one_look_up(index, q))
    pages = again.shelves.pages
    assert pages.misses == len(pages._slot_of[pages._slot_of >= 0]) < len(pages)
    assert pages.hits > 0


def test_a_session_stored_without_groups_is_grouped_when_it_is_opened():
    kept, blocks = Tensors(), random_blocks(58)
    plain = filled(blocks, None)
    keys, counts = plain.export(0)
    kept.keep({"representatives.0": keys, "counts.0": counts})
    index = new_index()
    index.restore(kept.stored(), 58, 0)
    live = filled(blocks)
    for q in queries(3):
        assert torch.equal(one_look_up(index, q), one_look_up(live, q))
    index.shelves.attach(kept)
    kept.keep(index.shelves.export())  # the next commit stores them
    index.release(0)
    later = new_index()
    later.shelves.attach(kept)
    later.restore(kept.stored(), 58, 0)
    assert torch.equal(one_look_up(later, q), one_look_up(live, q))


def test_an_index_of_which_a_part_is_missing_is_refused():
    kept, index = Tensors(), filled(random_blocks(30))
    commit(index, kept, 0)
    kept.blocks["shelf_summaries.0.10x6"] = kept.blocks["shelf_summaries.0.10x6"][1:]
    with pytest.raises(CorruptDataError, match="layer 0 is stored incompletely"):
        new_index().restore(kept.stored(), 30, 0)


def test_rows_of_groups_stay_within_their_bytes_and_are_read_again():
    kept, blocks = Tensors(), random_blocks(400)
    grid = Grid(above=0, shelf=40, group=32, probe=3)
    index, free = new_index(grid), filled(blocks, grid)
    index.shelves.attach(kept)
    index.max_bytes = 80_000
    for at in range(0, 400, 20):
        for raw, mass in blocks[at : at + 20]:
            index.add(raw, mass)
        commit(index, kept, at)
        assert index.bytes <= index.max_bytes
        for q in queries(6, seed=at):
            one_look_up(index, q)
            assert index.bytes <= index.max_bytes
    assert index.shelves.pages.misses > 20 and free.bytes > 2 * index.max_bytes
    for q in queries(5):
        assert torch.equal(one_look_up(index, q), one_look_up(free, q))


def test_dropped_shelves_are_released():
    index = new_index(Grid(above=20, shelf=10, group=6, probe=3))
    raw, mass = random_blocks(1)[0]
    for n in range(1, 3001):
        index.add(raw, mass)
        index.drop_front(max(0, n - 50))
        index.release(n)
    assert index.grouped and index.bytes < 150_000
    assert one_look_up(index, queries(1)[0]).shape == (KV_HEADS, 50)


def test_pages_that_are_not_durable_stay_and_others_leave_least_recently_read_first():
    rows = torch.randn(9, 2, 3)
    pages = GroupPages(2, 3, torch.float32, torch.device("cpu"))
    reads = []

    def reader(spans):
        reads.extend(spans)
        return [rows[start:stop] for start, stop in spans]

    pages.reader, pages.most = reader, 3
    pages.put(rows[:5])
    assert torch.equal(pages.read(torch.arange(5)), rows[:5]) and not reads
    pages.commit()
    pages.put(rows[5:])
    pages.truncate(7)
    assert torch.equal(pages.since(5), rows[5:7])
    assert torch.equal(pages.read(torch.tensor([4, 0, 1])), rows[[4, 0, 1]])
    assert torch.equal(pages.read(torch.tensor([6, 5])), rows[[6, 5]])
    pages.commit()
    reads.clear()
    pages.read(torch.tensor([5, 6]))
    assert not reads
    pages.read(torch.tensor([3, 2]))
    assert reads == [(2, 4)]  # neighbours in one span
    pages.read(torch.tensor([2, 3]))
    assert reads == [(2, 4)]


def test_which_look_ups_go_through_groups():
    def shelves(**settings):
        return Lookup(SPEC, MemoryConfig(**settings)).index.shelves

    assert shelves() is not None and shelves().grid.above == 10_000
    assert shelves(two_level_above=None) is None
    assert shelves(scorer="representative") is None and shelves(scorer="bounds") is None
    assert shelves(max_blocks=500) is None and shelves(max_blocks=20_000) is not None


def test_a_session_answers_alike_whether_its_index_lies_in_memory_or_in_the_store(tmp_path, engine):
    logits = []
    for name, host_bytes in (("a", 2**30), ("b", 0)):
        own = Engine(engine.model, engine.tokenizer, TWO_LEVELS.replace(host_bytes=host_bytes))
        with SQLiteStore(tmp_path / name) as store:
            with own.session("s", store=store) as session:
                for at in range(3):
                    session.add(chatter(6 + at))
                logits.append(probe_logits(own, session))
            with own.session("s", store=store) as session:
                assert torch.equal(probe_logits(own, session), logits[-1])
                layer = session._conversation.memory.full_layers[-1]
                assert layer.lookup.index.grouped
                assert layer.lookup.index.shelves.pages.misses > 0
    assert torch.equal(*logits)


def test_the_threshold_may_change_between_processes(tmp_path, engine):
    counts = []
    with SQLiteStore(tmp_path / "s") as store:
        for above in (None, 0, 10_000, 0):
            config = TWO_LEVELS.replace(two_level_above=above)
            own = Engine(engine.model, engine.tokenizer, config)
            with own.session("s", store=store) as session:
                session.add(chatter(5))
                index = session._conversation.memory.full_layers[-1].lookup.index
                assert index.grouped == (above == 0)
                assert index.shelves is None or len(index.shelves) == len(index) // 4
                counts.append(len(index))
    assert counts == sorted(counts) and counts[0] >= 4
