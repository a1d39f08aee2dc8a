"""Two-level look-ups: groups of similar rows, the groups a look-up reads, and where their rows lie."""

from __future__ import annotations

import math
import threading

import pytest
import torch
from conftest import SMALL, chatter
from test_block_index import HEADS, KV_HEADS, queries, random_blocks
from test_resume import probe_logits

from longmem import CorruptDataError, Engine, MemoryConfig, SessionClosedError
from longmem.memory.index import BlockIndex
from longmem.memory.lookup import Lookup
from longmem.memory.lookups import PassLookups
from longmem.memory.pages import GroupPages
from longmem.memory.shelf_plan import Grid, Place
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.retrieval import best_of, get_scorer, group_order
from longmem.retrieval.grouping import _ITERATIONS
from longmem.retrieval.summaries import PEAK
from longmem.stores import SQLiteStore

DIM, N_REPR = 8, 4
GRID = Grid(above=0, shelf=10, group=6, probe=3, probe_reading=2)
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
        eager = {k: t for k, t in self.blocks.items() if k.startswith("counts.")}
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


def naive_shelves(blocks, size=10):
    """First and last block of each shelf that serves, oldest first, with those it was merged of."""
    large = [(at, at + 4 * size) for at in range(0, blocks, 4 * size) if at + 4.5 * size <= blocks]
    start = large[-1][1] if large else 0
    small = [
        (at, at + size) for at in range(start, blocks, size) if at + size + size // 8 <= blocks
    ]
    return [
        (span, [(at, at + size) for at in range(*span, size)] if span in large else [])
        for span in large + small
    ]


def naive_groups(rows, size):
    order = naive_order(torch.stack([key for _, key in rows]), size)
    placed = [rows[i] for i in order]
    return [placed[i : i + size] for i in range(0, len(rows), size)]


def naive_scores(blocks, q, grid, first=0):
    """What a two-level look-up of q ``[H, T, D]`` gives every block, row by row: [KV head][block]."""
    full = filled(blocks, None)
    starts, keys = full.rows.starts.tolist(), full.rows.keys
    shelves, probe = (
        naive_shelves(len(blocks)),
        grid.probe if q.shape[1] == 1 else grid.probe_reading,
    )
    mean, per_head = q.mean(1) * SPEC.scaling, HEADS // KV_HEADS
    scores = [[0.0] * len(blocks) for _ in range(KV_HEADS)]
    for kv in range(KV_HEADS):
        own = mean[kv * per_head : (kv + 1) * per_head]
        groups = []  # of rows (block, key)
        for span, parts in shelves:
            if span[1] <= first:
                continue
            pieces = [
                [(b, keys[kv, r]) for b in range(*part) for r in range(starts[b], starts[b + 1])]
                for part in parts or [span]
            ]
            if parts:
                pieces = [row for piece in pieces for row in naive_groups(piece, grid.group)]
            groups += naive_groups([row for piece in pieces for row in piece], grid.group)
        centre, spread = [], []
        for group in groups:
            stack = torch.stack([key for _, key in group])
            centre.append(own @ stack.mean(0))
            spread.append(own**2 @ stack.var(0, correction=0))
        peak = torch.stack([c + PEAK * s.sqrt() for c, s in zip(centre, spread, strict=True)])
        behind = (peak - peak.max(0).values).max(1).values.tolist()
        best = sorted(range(len(groups)), key=lambda g: -behind[g])[:probe]
        read = [row for g in best for row in groups[g] if row[0] >= first]
        loose = range(max(first, shelves[-1][0][1] if shelves else 0), len(blocks))
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


@pytest.mark.parametrize(
    ("n", "first"), [(43, 0), (43, 13), (123, 0), (123, 95), (45, 17), (44, 0)]
)
def test_a_look_up_reads_the_best_groups_and_estimates_the_others(n, first):
    blocks = random_blocks(n)
    index = filled(blocks)
    index.drop_front(first)
    for q in queries(6):
        torch.testing.assert_close(
            one_look_up(index, q), naive_scores(blocks, q, GRID, first), atol=1e-5, rtol=1e-4
        )


def test_reading_all_groups_equals_scoring_every_row():
    blocks = random_blocks(104)
    index = filled(blocks, Grid(0, 10, 6, 1000, 1000))
    for first in (0, 25, 85):
        index.drop_front(first)
        full = filled(blocks, None)
        full.drop_front(first)
        for q in queries(5):
            scores, expected = one_look_up(index, q), one_look_up(full, q)
            torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
            assert torch.equal(scores.topk(4).indices, expected.topk(4).indices)


@pytest.mark.parametrize("group_bytes", [1, 2**20])
def test_look_ups_of_a_pass_equal_one_at_a_time_while_shelves_fill(group_bytes):
    scorer, later = get_scorer("soft_vote"), iter(random_blocks(140, seed=3))
    index = filled(random_blocks(35), Grid(38, shelf=10, group=6, probe=3, probe_reading=2))
    lookups = PassLookups(scorer, index, group_bytes=group_bytes, tile_bytes=2000)
    spans = queries(60)
    lookups.begin(spans)
    grouped = set()
    for i, q in enumerate(spans):
        if i % 2:
            index.add(*next(later))
            index.add(*next(later))
        index.drop_front(max(0, len(index) - 75))
        grouped.add(index.grouped)
        torch.testing.assert_close(lookups.scores(i), one_look_up(index, q), atol=1e-5, rtol=1e-5)
    assert grouped == {False, True}


def test_groups_do_not_depend_on_what_was_forgotten_in_between():
    blocks, others = random_blocks(130), random_blocks(130, seed=8)
    straight = filled(blocks)
    for n, more in ((28, 25), (42, 3), (85, 30), (91, 1), (84, 41), (0, 100), (20, 2)):
        index = filled(blocks[:n])
        for raw, mass in others[:more]:
            index.add(raw, mass)
        index.truncate(n)
        for raw, mass in blocks[n:]:
            index.add(raw, mass)
        for q in queries(2):
            assert torch.equal(one_look_up(index, q), one_look_up(straight, q))


def test_shelves_are_merged_and_what_they_were_merged_of_is_let_go():
    kept, blocks, index = Tensors(), random_blocks(250), new_index()
    index.shelves.attach(kept)
    for at in range(250):
        index.add(*blocks[at])
        if at % 7 == 6:
            commit(index, kept, at - 6)
            shelves = index.shelves.serving.shelves
            assert [(s.first, s.stop) for s in shelves] == [s for s, _ in naive_shelves(at + 1)]
            held = sum(s.groups for s in shelves) * KV_HEADS
            assert int((index.shelves.pages._slot_of >= 0).sum()) == held
    assert [s.stop - s.first for s in index.shelves.serving.shelves] == [40] * 6


class Closing(Tensors):
    """Is closed while somebody reads from it."""

    def __init__(self):
        super().__init__()
        self.closed = threading.Event()

    def read_blocks(self, name, spans):
        self.closed.wait(30)
        raise SessionClosedError("the stand-in was closed")


def test_shelves_that_are_being_merged_when_another_store_is_attached_are_merged_from_that_one():
    first, then, blocks, index = Closing(), Tensors(), random_blocks(60), new_index()
    index.shelves.attach(first)
    n = 0
    while Place(1, 0) not in index.shelves._forming:
        index.add(*blocks[n])
        commit(index, first, n)
        n += 1
    then.blocks = first.blocks
    index.shelves.attach(then)
    first.closed.set()
    for raw, mass in blocks[n:]:
        index.add(raw, mass)
    assert [s.stop - s.first for s in index.shelves.serving.shelves] == [40, 10]
    for q in queries(2):
        assert torch.equal(one_look_up(index, q), one_look_up(filled(blocks), q))


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("shelf", [1, 4, 10, 1024])
def test_the_shelves_that_serve_follow_from_the_number_of_blocks(shelf, level):
    grid = Grid(0, shelf, 6, 3, 2)
    for number in range(3):
        place = Place(level, number)
        at = grid.serves_at(place)
        assert grid.served(level, at) == number + 1 and grid.served(level, at - 1) == number
        assert grid.stop(place) <= at and grid.begun(level, at) >= number + 1


def test_the_best_of_a_long_row_are_those_that_topk_finds():
    g = torch.Generator().manual_seed(2)
    for n, k in ((5, 3), (5, 9), (700, 3), (701, 20), (4096, 128), (4111, 128), (3000, 90)):
        values = torch.randn(3, n, generator=g)
        expected = values.topk(min(k, n), dim=1).indices.sort(1).values
        assert torch.equal(best_of(values, k).sort(1).values, expected)


@pytest.mark.parametrize("ends", [(25, 41, 58), (60, 97, 134), (84, 85, 86)])
def test_a_restored_index_reads_rows_of_groups_by_and_by_and_gives_equal_scores(ends):
    kept, blocks = Tensors(), random_blocks(ends[-1])
    index = new_index()
    index.shelves.attach(kept)
    for at, end in zip((0, *ends), ends, strict=False):
        for raw, mass in blocks[at:end]:
            index.add(raw, mass)
        commit(index, kept, at)
    kept.reads.clear()
    again = new_index()
    again.shelves.attach(kept)
    again.restore(kept.stored(), ends[-1], 0)
    row = int(kept.blocks["counts.0"][: again.shelves.stop].sum())
    spans = [spans for name, spans in kept.reads if name == "representatives.0"]
    assert spans == [((row, len(kept.blocks["representatives.0"])),)]
    assert not [name for name, _ in kept.reads if name.startswith("shelf_rows.")]
    for q in queries(5):
        assert torch.equal(one_look_up(again, q), one_look_up(index, q))
    pages = again.shelves.pages
    assert pages.misses == len(pages._slot_of[pages._slot_of >= 0]) < len(pages)
    assert pages.hits > 0


@pytest.mark.parametrize("n", [58, 134])
def test_a_session_stored_without_groups_is_grouped_when_it_is_opened(n):
    kept, blocks = Tensors(), random_blocks(n)
    plain = filled(blocks, None)
    keys, counts = plain.export(0)
    kept.keep({"representatives.0": keys, "counts.0": counts})
    index = new_index()
    index.shelves.attach(kept)
    index.restore(kept.stored(), n, 0)
    index.release(0)  # nothing of it is stored yet
    live = filled(blocks)
    for q in queries(3):
        assert torch.equal(one_look_up(index, q), one_look_up(live, q))
    kept.keep(index.shelves.export())  # the next commit stores them
    index.release(0)
    later = new_index()
    later.shelves.attach(kept)
    later.restore(kept.stored(), n, 0)
    assert later.shelves.export() == {}
    assert torch.equal(one_look_up(later, q), one_look_up(live, q))


def test_an_index_of_which_a_part_is_missing_is_refused():
    kept, index = Tensors(), filled(random_blocks(30))
    commit(index, kept, 0)
    kept.blocks["shelf_summaries.0.10x6"] = kept.blocks["shelf_summaries.0.10x6"][1:]
    with pytest.raises(CorruptDataError, match="layer 0 is stored incompletely"):
        new_index().restore(kept.stored(), 30, 0)


def test_rows_of_groups_stay_within_their_bytes_and_are_read_again():
    kept, blocks = Tensors(), random_blocks(400)
    grid = Grid(above=0, shelf=40, group=32, probe=3, probe_reading=2)
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
    index = new_index(Grid(20, shelf=10, group=6, probe=3, probe_reading=2, levels=1))
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
    pages.commit(5)
    assert pages.put(rows[5:]) == 5
    pages.truncate(7)
    assert torch.equal(pages.rows(5, 2), rows[5:7])
    assert torch.equal(pages.later(torch.tensor([6, 0, 4, 5]))(), rows[[6, 0, 4, 5]])
    assert reads == [(0, 1), (4, 5)]
    reads.clear()
    assert torch.equal(pages.read(torch.tensor([4, 0, 1])), rows[[4, 0, 1]])
    assert torch.equal(pages.read(torch.tensor([6, 5])), rows[[6, 5]])
    pages.commit(7)
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

    assert shelves() is not None and shelves().grid.above == 5000
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
                assert index.shelves is None or index.shelves.stop == len(index) // 4 * 4
                counts.append(len(index))
    assert counts == sorted(counts) and counts[0] >= 4
