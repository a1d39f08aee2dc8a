"""Tiers of closed blocks: budgets to the byte, hits as written out, the same values wherever they lay."""

from __future__ import annotations

import gc
import os
import random
import threading
import weakref
from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
from conftest import SMALL
from tiny import attached, new_memory, qwen3, read_in_passes, tokens

from longmem import ConfigError, CorruptDataError, Engine, MemoryConfig
from longmem.codec import get_codec
from longmem.ledger import Draft, Ledger
from longmem.memory import ReadSpan, placement
from longmem.memory.blocks import BlockTable
from longmem.memory.budget import TierBudget
from longmem.memory.coded_blocks import CodedBlocks, Coding
from longmem.memory.fetching import Ahead
from longmem.memory.groups import BlockGroups
from longmem.memory.slab import DeviceSlab
from longmem.memory.spec import LayerSpec
from longmem.store import SessionInfo
from longmem.stores import InMemoryStore, SQLiteStore

TINY = MemoryConfig(
    n_init=4, n_local=24, block_size=8, topk=3, repr_topk=2, lookup_span=16, stride=4
)
LAYERS = 3
BLOCK_BYTES = 8 * 2 * 2 * 8 * 4  # of one layer: tokens, key and value, KV heads, D, float32
SPAN = 16


@pytest.fixture(scope="module", name="tiny")
def tiny_model():
    return attached(qwen3())


@pytest.fixture(params=[SQLiteStore, InMemoryStore], name="store")
def any_store(request, tmp_path):
    with request.param(*([tmp_path / "s"] if request.param is SQLiteStore else [])) as store:
        yield store


class Talk:
    """A stored session of the tiny model."""

    def __init__(self, tiny, store, config: MemoryConfig, id: str = "a") -> None:
        self._model, info = tiny
        if id in {each.id for each in store.sessions()}:
            self.handle = store.open(id)
        else:
            layout = tuple((spec.kv_heads, spec.dim) for spec in info.layers)
            self.handle = store.create(SessionInfo(id, None, {}, {}, layout, "float32", 0.0, 0.0))
        self.ledger = Ledger(self.handle)
        self.memory = memory = new_memory(info, config)
        snapshot = self.handle.snapshot(lazy=memory.LAZY)
        if snapshot is None:
            memory.attach(self.handle)
        else:
            blocks, state = dict(snapshot.blocks), dict(snapshot.state)
            memory.restore(snapshot.n_tokens, blocks, state, self.handle, snapshot.lazy)

    def read(self, n: int, seed: int = 1) -> torch.Tensor:
        """Logits of n tokens, which are not committed yet."""
        return read_in_passes(self._model, self.memory, tokens(n, seed), SPAN, 4)

    def commit(self, n: int, seed: int = 1) -> None:
        """Commit the n tokens just read."""
        spans = [ReadSpan(min(SPAN, n - at), min(SPAN, n - at)) for at in range(0, n, SPAN)]
        self.ledger.commit([Draft("user", "x", tokens(n, seed), spans)], self.memory, {})

    def say(self, n: int, seed: int = 1) -> None:
        self.read(n, seed)
        self.commit(n, seed)

    def probe(self, n: int = 40) -> torch.Tensor:
        """Logits of a fixed continuation, which is forgotten again."""
        mark = self.memory.mark()
        logits = self.read(n, seed=77)
        self.memory.rewind(mark)
        return logits

    def tiers(self):
        return [layer.tier for layer in self.memory.full_layers]


@contextmanager
def talk(tiny, store, id: str = "a", **settings):
    """A session that lives as long as the block."""
    made = Talk(tiny, store, TINY.replace(**settings), id)
    try:
        yield made
    finally:
        made.handle.close()


def told(tiny, store, **settings) -> None:
    """A stored session of 40 closed blocks, in several commits."""
    with talk(tiny, store, **settings) as session:
        for seed in range(5):
            session.say(70, seed)


def random_lookups(n_blocks: int, n: int = 120) -> list[list[int]]:
    """Look-ups of four blocks or fewer, some blocks far more often than others."""
    draw = random.Random(0)
    return [sorted({int(n_blocks * draw.random() ** 2) for _ in range(4)}) for _ in range(n)]


@pytest.mark.parametrize("codec", ["exact", "bf16", "int8", "int4"])
def test_host_memory_stays_within_its_budget_with_the_index_inside(tiny, store, codec):
    with talk(tiny, store, codec=codec, host_bytes=10**9) as session:
        index = session.memory.bytes_index
    host_bytes = index + 16 * 1024 * LAYERS
    with talk(tiny, store, codec=codec, host_bytes=host_bytes, id="b") as session:
        for seed in range(8):
            session.say(70, seed)
            held = sum(tier.bytes for tier in session.tiers())
            raw = sum(getattr(tier._host, "_raw_bytes", 0) for tier in session.tiers())
            assert held + session.memory.bytes_index <= host_bytes + raw
            assert raw <= LAYERS * BLOCK_BYTES * group_tokens(codec) // 8
        assert held > raw
        assert sum(tier.counts.disk for tier in session.tiers()) > 0 or codec != "exact"


def group_tokens(codec: str) -> int:
    """Fewest tokens of a group; 0 where no block waits for others."""
    return 0 if codec == "exact" else get_codec(codec).group_tokens


def test_without_host_bytes_every_durable_block_comes_from_the_store(tiny, store):
    told(tiny, store)
    with talk(tiny, store, host_bytes=0) as session:
        session.say(30, seed=9)
        for tier in session.tiers():
            assert tier.bytes == 0
            assert tier.counts.host < tier.counts.disk


def test_hits_of_the_host_cache_are_those_of_a_written_out_lru(tiny, store):
    told(tiny, store)
    with talk(tiny, store) as session:
        index = session.memory.bytes_index
    with talk(tiny, store, host_bytes=index + 8_500 * LAYERS) as session:
        tier = session.tiers()[1]
        lru: OrderedDict[int, int] = OrderedDict()
        hits = misses = 0
        for blocks in random_lookups(session.memory.n_blocks):
            tier.get_many(blocks)
            missing = [block for block in blocks if block not in lru]
            hits, misses = hits + len(blocks) - len(missing), misses + len(missing)
            for block in [b for b in blocks if b in lru] + missing:
                lru[block] = BLOCK_BYTES
                lru.move_to_end(block)
            while sum(lru.values()) > 8_500:
                lru.popitem(last=False)
            assert tier.bytes == sum(lru.values()) <= 8_500
        assert (tier.counts.host, tier.counts.disk) == (hits, misses)
        assert tier.counts.bytes_read == misses * BLOCK_BYTES
        assert hits > 80 and misses > 80


def test_hits_of_the_slots_are_those_of_written_out_weights(tiny, store):
    told(tiny, store)
    slots = 9
    with talk(tiny, store, host_bytes=0, device_bytes=slots * BLOCK_BYTES * LAYERS + 17) as session:
        tier = session.tiers()[1]
        uses: dict[int, list[int]] = {}
        hits = misses = now = 0

        def weight(block: int) -> float:
            return sum(2 ** ((use - now) / (32 * TINY.topk)) for use in uses[block])

        for blocks in random_lookups(session.memory.n_blocks):
            tier.get_many(blocks)
            missing = [block for block in blocks if block not in uses]
            hits, misses = hits + len(blocks) - len(missing), misses + len(missing)
            for block in [b for b in blocks if b in uses] + missing:
                now += 1
                if block in missing and len(uses) == slots:
                    del uses[min(uses.keys() - set(blocks), key=weight)]
                uses.setdefault(block, []).append(now)
            assert tier.slab_bytes <= slots * BLOCK_BYTES
        assert (tier.counts.device, tier.counts.no_slot) == (hits, misses)
        assert (tier.counts.host, tier.counts.disk) == (0, misses)
        assert hits > 80 and misses > 80


@pytest.mark.parametrize("codec", ["exact", "int4"])
@pytest.mark.parametrize("device_bytes", [0, 30_000])
def test_blocks_that_left_come_back_equal(tiny, store, codec, device_bytes):
    told(tiny, store, codec=codec)
    with talk(tiny, store, codec=codec) as session:
        n, plenty = session.memory.n_blocks, session.tiers()[2]
        expected = [kv.clone() for block in range(n) for kv in plenty.get_many([block])]
    settings = {"codec": codec, "host_bytes": 20_000, "device_bytes": device_bytes}
    with talk(tiny, store, **settings) as session:
        tier = session.tiers()[2]
        for blocks in random_lookups(n, 60):
            for block, kv in zip(blocks, tier.get_many(blocks), strict=True):
                assert torch.equal(kv, expected[block])


def test_a_slab_keeps_the_blocks_of_a_look_up_and_gives_slots_back_when_its_budget_falls(tiny):
    spec = tiny[1].layers[0]
    slab = DeviceSlab(spec, 8, 100)
    kv = [torch.full((2, spec.kv_heads, 8, spec.dim), float(i)) for i in range(60)]
    most = 50 * slab.slot_bytes
    for i in range(60):
        slab.put(i, kv[i], most)
    assert slab.bytes == most and 9 not in slab
    assert all(torch.equal(slab.get(i), kv[i]) for i in range(10, 60))
    slab.put(3, kv[3], most, keep=range(10, 60))
    assert 3 not in slab
    slab.put(4, kv[4][:, :, :5], most, keep=range(10, 59))
    assert 59 not in slab and torch.equal(slab.get(4), kv[4][:, :, :5])
    slab.put(5, kv[5], 33 * slab.slot_bytes)
    assert slab.bytes <= 33 * slab.slot_bytes and torch.equal(slab.get(5), kv[5])
    held = [i for i in range(60) if i in slab]
    assert 0 < len(held) <= 33
    assert all(torch.equal(slab.get(i)[:, :, :5], kv[i][:, :, :5]) for i in held)
    slab.put(6, kv[6], 0)
    assert slab.bytes == 0 and not any(i in slab for i in range(60))


@pytest.mark.parametrize("codec", ["exact", "int8"])
def test_reading_ahead_changes_no_bit(tiny, store, monkeypatch, codec):
    settings = {"lookup_layers": (0,), "host_bytes": 0, "codec": codec}
    told(tiny, store, **settings)
    found = []
    for _ in range(2):
        with talk(tiny, store, **settings) as session:
            logits = session.probe(100)
            found.append((logits, [tier.counts for tier in session.tiers()]))
        monkeypatch.setattr(placement.BlockTier, "prefetch", lambda self, blocks: None)
    (a, ahead), (b, on_demand) = found
    assert torch.equal(a, b)
    assert [counts.ahead > 0 for counts in ahead] == [False, True, True]
    assert all(counts.ahead == 0 for counts in on_demand)
    assert [counts.disk for counts in ahead] == [counts.disk for counts in on_demand]


@pytest.mark.parametrize("lookup_layers", ["all", (0,)])
def test_a_file_lost_under_a_live_session_is_named_and_the_other_session_goes_on(
    tiny, tmp_path, lookup_layers
):
    settings = {"lookup_layers": lookup_layers, "host_bytes": 0}
    with SQLiteStore(tmp_path / "s") as store:
        told(tiny, store, **settings)
        files = sorted((tmp_path / "s").rglob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)
        with talk(tiny, store, id="b", **settings) as other:
            other.say(200)
    with (
        SQLiteStore(tmp_path / "s") as store,
        talk(tiny, store, **settings) as session,
        talk(tiny, store, id="b", **settings) as other,
    ):
        for path in files[1:-1]:  # one that is open would outlive being unlinked
            os.truncate(path, 0)
            path.unlink()
        mark = session.memory.mark()
        with pytest.raises(CorruptDataError) as raised:
            session.say(100, seed=9)
        assert any(path.name in str(raised.value) for path in files[1:-1])
        session.memory.rewind(mark)
        other.say(100, seed=9)
        assert other.handle.info.head == 2


def test_an_error_of_a_read_ahead_surfaces_where_its_block_is_asked_for():
    ahead: Ahead[str] = Ahead(8)
    threads = set()

    def failing(blocks):
        def read():
            threads.add(threading.get_ident())
            raise CorruptDataError("file x is gone")

        return read

    ahead.start([3, 4], failing)
    with pytest.raises(CorruptDataError, match="file x is gone"):
        ahead.take(4)
    assert threads and threading.get_ident() not in threads
    assert ahead.take(3) is None  # it will be read anew
    ahead.start([3, 4], lambda blocks: lambda: [f"block {b}" for b in blocks])
    assert (ahead.take(4), ahead.take(3)) == ("block 4", "block 3")


def test_reads_ahead_are_limited():
    ahead: Ahead[int] = Ahead(3)
    for blocks in ([1, 2], [3, 4], [5]):
        ahead.start(blocks, lambda some: lambda: list(some))
    assert [block in ahead for block in range(1, 6)] == [True, True, True, False, False]
    assert ahead.take(3) == 3


def test_slots_too_few_for_one_look_up_are_refused_with_both_numbers(engine):
    need = (
        4 * 16 * 2 * 4 * 32 * 4 * 4
    )  # topk, block_size, key and value, KV heads, D, bytes, layers
    with pytest.raises(ConfigError, match=rf"device_bytes is {need - 1:,}.*{need:,} bytes"):
        Engine(engine.model, engine.tokenizer, SMALL.replace(device_bytes=need - 1))
    Engine(engine.model, engine.tokenizer, SMALL.replace(device_bytes=need))


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4"])
def test_a_complete_group_is_served_decoded_and_an_open_one_raw(tiny, codec):
    model, info = tiny
    exact, coded = (new_memory(info, TINY.replace(codec=c)) for c in ("exact", codec))
    for memory in (exact, coded):
        read_in_passes(model, memory, tokens(400), 16, 8)
    raw, tier = exact.full_layers[0].tier, coded.full_layers[0].tier  # no attention lies below
    n, settled = exact.n_blocks, tier.settled
    per_group = max(1, get_codec(codec).group_tokens // TINY.block_size)
    assert settled == n - n % per_group
    for first in range(0, settled, per_group):
        group = range(first, first + per_group)
        rows = torch.cat(raw.get_many(group), dim=2).permute(2, 0, 1, 3)
        decoded = get_codec(codec).decode(get_codec(codec).encode(rows), torch.float32)
        assert not torch.equal(decoded, rows)
        assert torch.equal(torch.cat(tier.get_many(group), dim=2), decoded.permute(1, 2, 0, 3))
    for block in range(settled, n):
        assert torch.equal(tier.get_many([block])[0], raw.get_many([block])[0])


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4"])
def test_a_resumed_session_goes_on_bit_equal_to_the_live_one(tiny, store, codec):
    settings = {"codec": codec, "block_boundaries": "turn", "lookup_layers": (1,)}
    with talk(tiny, store, **settings) as session:
        for seed in range(6):
            session.say(33, seed)
        live = session.probe()
        session.say(50, seed=9)
        later = session.probe()
    with talk(tiny, store, host_bytes=0, **settings) as session:
        assert torch.equal(session.probe(), later)
    assert not torch.equal(live, later)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_groups_of_a_commit_that_failed_are_forgotten(tiny, store, monkeypatch, codec):
    with talk(tiny, store, codec=codec) as straight:
        straight.say(150)
        straight.say(150, seed=2)
        expected = straight.probe()
    with talk(tiny, store, id="b", codec=codec) as session:
        session.say(150)
        mark = session.memory.mark()
        session.read(200, seed=5)
        session.memory.export()
        session.memory.rewind(mark)
        session.say(150, seed=2)
        assert torch.equal(session.probe(), expected)
    with talk(tiny, store, id="b", codec=codec) as session:
        assert torch.equal(session.probe(), expected)


@pytest.mark.parametrize(("codec", "most"), [("bf16", 1.0), ("int8", 0.54), ("int4", 0.33)])
def test_groups_over_blocks_of_any_length_are_as_small_as_promised(codec, most):
    spec = LayerSpec(0, 4, 2, 32, None, None, 1.0, torch.float32, torch.device("cpu"))
    table = BlockTable(0, 40, "turn", 8)
    draw = random.Random(1)
    while table.edges[-1] < 5000:
        table.append([table.edges[-1] + draw.randint(1, 40)])
    groups = BlockGroups(table, get_codec(codec).group_tokens)
    blocks = CodedBlocks(spec, table, Coding(get_codec(codec), groups))
    for block in range(len(table.edges) - 1):
        start, stop = table.span(block)
        blocks.put_many(block, [torch.randn(2, 2, stop - start, 32)])
    stored = blocks.export()
    n_coded = stored["codes"].shape[0]
    assert n_coded == table.edges[blocks.settled] > 4800
    assert sum(t.nbytes for t in stored.values()) <= most * n_coded * 2 * 2 * 32 * 2


def test_codes_that_are_not_those_of_the_blocks_are_refused(tiny, store):
    told(tiny, store, codec="int4")
    handle = store.open("a")
    snapshot = handle.snapshot()
    memory = new_memory(tiny[1], TINY.replace(codec="int4"))
    blocks = {name: t for name, t in snapshot.blocks.items() if name != "codes.2"}
    with pytest.raises(CorruptDataError, match=r"layer 2: 0 tokens are encoded.*rebuild=True"):
        memory.restore(snapshot.n_tokens, blocks, dict(snapshot.state), handle)
    handle.close()


def test_a_compressive_memory_refuses_a_codec():
    with pytest.raises(ConfigError, match='codec="int8" does not go with a compressive memory'):
        MemoryConfig(codec="int8", compressive={})


def test_the_index_counts_where_the_model_runs(tiny):
    budget = TierBudget(TINY.replace(host_bytes=9_000, device_bytes=600), tiny[1].layers)
    assert (budget.host, budget.device) == (3_000, 200)
    budget.charge_index(3_000)
    assert (budget.host, budget.device) == (2_000, 200)
    budget.charge_index(10_000)
    assert budget.host == 0


def test_sessions_opened_and_dropped_leave_no_thread_and_no_memory(tiny):
    alive = []
    config = TINY.replace(lookup_layers=(1,), codec="int4", device_bytes=100_000)
    for _ in range(500):
        memory = new_memory(tiny[1], config)
        memory.full_layers[2].tier._ahead.start([0], lambda blocks: lambda: [1])
        alive.append(weakref.ref(memory.full_layers[2]))
    del memory
    gc.collect()
    assert sum(ref() is not None for ref in alive) == 0
    fetchers = [t for t in threading.enumerate() if t.name.startswith("longmem-fetch")]
    assert 0 < len(fetchers) <= 4
