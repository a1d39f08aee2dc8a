"""Blocks between device and host: one gather a layer, copies that may come late, memory used again."""

from __future__ import annotations

import gc
import random
import threading

import pytest
import torch
from late_lanes import LateLanes
from pretend_device import pretend
from tiny import VOCAB, attached, new_memory, read_in_passes, tokens
from transformers import LlamaConfig, LlamaForCausalLM

from longmem.codec import get_codec
from longmem.config import MemoryConfig
from longmem.ledger import Draft, Ledger
from longmem.memory import AttentionCall, ReadSpan, SessionMemory, full_layer, transfers
from longmem.memory.arena import Arena
from longmem.memory.placement import BlockTier
from longmem.memory.spec import LayerSpec
from longmem.memory.transfers import Transfers
from longmem.ops.rotary import Rotary
from longmem.ops.working_set_attention import attend_blocked
from longmem.store import SessionInfo
from longmem.stores import InMemoryStore

CPU = torch.device("cpu")
DIM, HEADS, KV_HEADS = 64, 4, 2
SMALL = MemoryConfig(
    n_init=4, n_local=24, block_size=8, topk=3, repr_topk=2, lookup_span=16, stride=4
)
BLOCK_BYTES = 8 * 2 * KV_HEADS * DIM * 2


def layer_specs(layers: int, device: torch.device) -> list[LayerSpec]:
    inv_freq = 10_000.0 ** -(torch.arange(0, DIM, 2, dtype=torch.float64) / DIM)
    rotary = Rotary(inv_freq.to(device), "half")
    dtype = torch.bfloat16
    return [
        LayerSpec(i, HEADS, KV_HEADS, DIM, rotary, None, DIM**-0.5, dtype, device)
        for i in range(layers)
    ]


@pytest.fixture(name="interpreted")
def kernels_in_the_interpreter(monkeypatch):
    """Kernels for the blocks; attention itself, slow in the interpreter, is not what is tested here."""
    pytest.importorskip("triton")
    monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
    monkeypatch.setattr(full_layer, "attend", attend_blocked)


@pytest.fixture(name="late")
def late_copies(monkeypatch, interpreted):
    lanes = LateLanes()
    monkeypatch.setattr(transfers, "_of", {CPU: Transfers(lanes)})
    return lanes


class History:
    """A memory of random keys and values, and the whole of what it read."""

    def __init__(
        self, config: MemoryConfig, layers: int = 1, seed: int = 0, device: torch.device = CPU
    ) -> None:
        self.config = config
        self.specs = layer_specs(layers, device)
        self.memory = SessionMemory(self.specs, config, config.n_init)
        self.kv = [torch.zeros(2, KV_HEADS, 0, DIM, dtype=torch.bfloat16) for _ in self.specs]
        self.draw = torch.Generator().manual_seed(seed)

    def read(self, n: int, span: int = 32) -> None:
        """One pass over n tokens."""
        sizes = [min(span, n - at) for at in range(0, n, span)]
        reading = self.memory.prepare([ReadSpan(size, size) for size in sizes])
        for i, spec in enumerate(self.specs):
            q = torch.randn(HEADS, n, DIM, generator=self.draw).to(spec.dtype).to(spec.device)
            kv = torch.randn(2, KV_HEADS, n, DIM, generator=self.draw).to(spec.dtype)
            k, v = kv.to(spec.device)
            call = AttentionCall(spec.scaling, None, None)
            self.out = self.memory.read_layer(i, q, k, v, reading, call)
            self.kv[i] = torch.cat((self.kv[i], kv), dim=2)
        self.memory.advance(reading)

    def read_and_check(self, n: int) -> int:
        """`read`, then `check`."""
        self.read(n)
        return self.check()

    def block(self, layer: int, block: int) -> torch.Tensor:
        """``[2, H_kv, n, D]`` as it should be served."""
        start, stop = self.memory.table.span(block)
        codec = get_codec(self.config.codec)
        groups = self.memory._groups
        if codec is None or block >= self.memory.full_layers[layer].tier.settled:
            return self.kv[layer][:, :, start:stop]
        g = groups.of(block)
        first = self.memory.table.edges[groups.end(g)]
        last = self.memory.table.edges[groups.end(g + 1)]
        rows = self.kv[layer][:, :, first:last].permute(2, 0, 1, 3)
        decoded = codec.decode(codec.encode(rows), torch.bfloat16)
        return decoded[start - first : stop - first].permute(1, 2, 0, 3)

    def check(self) -> int:
        """The working sets hold what they say, to the bit; gives how many blocks they hold."""
        blocks = 0
        assert self.out.isfinite().all()
        for i, layer in enumerate(self.memory.full_layers):
            far, n_init = layer.working_set, len(layer.working_set.initial[0][0])
            held = far.stands_for
            for head in range(KV_HEADS):
                own = held[head if len(held) > 1 else 0] if held else ()
                parts = [self.kv[i][:, head, :n_init], *(self.block(i, b)[:, head] for b in own)]
                k, v = torch.cat(parts, dim=1)
                n = len(k)
                if self.config.far_positions == "ordered":
                    k = self.turned(i, own, n_init, k)
                assert far.lengths is None or far.lengths[head] == n
                assert torch.equal(far.k[head, :n].cpu(), k)
                assert torch.equal(far.v[head, :n].cpu(), v)
                blocks += len(own)
        return blocks

    def turned(self, layer: int, own, n_init: int, k: torch.Tensor) -> torch.Tensor:
        rotary, size, at = self.specs[layer].rotary, self.config.block_size, n_init
        k = k.clone()
        for i, b in enumerate(own):
            start, stop = self.memory.table.span(b)
            rank = len(own) - 1 - i
            angles = rotary.angles(torch.tensor([-rank * size]), torch.bfloat16)
            rows = slice(at, at + stop - start)
            k[rows] = rotary.rotate(k[rows].contiguous(), angles)
            at = rows.stop
        return k


def device_bytes(slots: int, layers: int = 1) -> int:
    return slots * BLOCK_BYTES * layers


@pytest.mark.parametrize("codec", ["exact", "bf16", "int8", "int4"])
@pytest.mark.parametrize("slots", [0, 3, 64])
def test_working_sets_hold_their_blocks_to_the_bit_wherever_these_lay(late, codec, slots):
    config = SMALL.replace(codec=codec, device_bytes=device_bytes(slots))
    history = History(config)
    blocks = 0
    for n in (40, 1, 55, 16, 90, 7, 64):
        history.read(n)
        blocks += history.check()
    assert blocks > 20
    counts = [layer.tier.counts for layer in history.memory.full_layers]
    assert all((c.device > 0) == (slots > 0) for c in counts)
    in_slots = {"exact": 64, "bf16": 64}.get(codec, 99)  # raw blocks of open groups have none
    assert all((c.host > 0) == (slots < in_slots) for c in counts)
    assert late.copies > 25


@pytest.mark.parametrize(
    "settings",
    [
        {"far_positions": "ordered"},
        {"far_positions": "ordered", "codec": "int4"},
        {"selection": "kv_head"},
        {"selection": "kv_head", "far_positions": "ordered", "codec": "int8"},
        {"lookup": "all"},
        {"lookup": "all", "codec": "int4"},
        {"lookup_layers": (0,)},
        {"lookup_layers": (0,), "codec": "int8"},
        {"max_blocks": 6, "codec": "int4"},
        {"max_blocks": 6, "compressive": {"mix": "lse"}},
    ],
    ids=str,
)
def test_every_way_to_choose_blocks_fills_working_sets_to_the_bit(late, settings):
    layers = 2 if "lookup_layers" in settings else 1
    config = SMALL.replace(device_bytes=device_bytes(5, layers), **settings)
    history = History(config, layers)
    assert sum(history.read_and_check(n) for n in (70, 1, 90, 33)) > 8


@pytest.mark.parametrize("codec", ["exact", "int8", "int4"])
def test_on_a_device_only_the_choice_of_blocks_is_waited_for(monkeypatch, codec):
    monkeypatch.setattr(full_layer, "attend", attend_blocked)
    with pretend() as world:
        config = SMALL.replace(codec=codec, device_bytes=device_bytes(5))
        history = History(config, device=torch.device("cuda", 0))
        for n in (60, 90, 40):
            before = len(world.waits)
            history.read(n)
            waits = [(wait.why, wait.where) for wait in world.waits[before:]]
            assert all("lookup" in where or "test_" in where for _, where in waits), waits
            assert history.check() > 0 or n == 60
        assert world.transfers["upload"] > 0


def test_the_checks_of_this_file_hold_without_kernels_too(monkeypatch):
    monkeypatch.setenv("LONGMEM_KERNELS", "off")
    for settings in ({"codec": "int4"}, {"selection": "kv_head", "far_positions": "ordered"}):
        history = History(SMALL.replace(device_bytes=device_bytes(5), **settings))
        assert sum(history.read_and_check(n) for n in (70, 1, 90, 33)) > 8


@pytest.mark.parametrize("codec", ["exact", "int8", "int4"])
def test_a_rewind_brings_back_what_copies_under_way_were_taking_away(late, codec):
    history = History(SMALL.replace(codec=codec, device_bytes=device_bytes(4)))
    for n in (60, 100):
        history.read_and_check(n)
        mark, kv = history.memory.mark(), list(history.kv)
        local = [
            (each.local.raw.clone(), each.local.v.clone()) for each in history.memory.full_layers
        ]
        history.read(75)
        history.memory.rewind(mark)
        history.kv = kv
        for layer, (raw, v) in zip(history.memory.full_layers, local, strict=True):
            assert torch.equal(layer.local.raw, raw) and torch.equal(layer.local.v, v)
    assert history.read_and_check(64) > 0


@pytest.mark.parametrize("codec", ["exact", "bf16", "int8", "int4"])
@pytest.mark.parametrize("slots", [0, 6])
def test_blocks_come_back_from_a_store_to_the_bit(late, codec, slots):
    config = SMALL.replace(codec=codec, device_bytes=device_bytes(slots), host_bytes=0)
    with InMemoryStore() as store:
        layout = ((KV_HEADS, DIM),)
        handle = store.create(SessionInfo("a", None, {}, {}, layout, "bfloat16", 0.0, 0.0))
        history = History(config)
        history.memory.attach(handle)
        for n in (90, 100):
            history.read_and_check(n)
            spans = [ReadSpan(min(16, n - at), min(16, n - at)) for at in range(0, n, 16)]
            Ledger(handle).commit([Draft("user", "x", [1] * n, spans)], history.memory, {})
        assert history.read_and_check(40) > 0
        again = History(config, seed=5)
        snapshot = handle.snapshot(lazy=history.memory.LAZY)
        blocks, state = dict(snapshot.blocks), dict(snapshot.state)
        again.memory.restore(snapshot.n_tokens, blocks, state, handle, snapshot.lazy)
        again.kv = [kv[:, :, :190] for kv in history.kv]
        assert again.read_and_check(50) > 0
        assert again.memory.full_layers[0].tier.counts.disk > 0
        handle.close()


def test_prefetched_blocks_are_on_their_way_to_slots_before_they_are_asked_for(late):
    history = History(SMALL.replace(device_bytes=device_bytes(8)))
    history.read(200)
    tier: BlockTier = history.memory.full_layers[0].tier
    outside = [b for b in range(15) if b not in tier._slab][:3]
    before = late.copies
    tier.prefetch(outside)
    assert late.copies == before + 3 and all(b in tier._slab for b in outside)
    tier.prefetch(outside)
    assert late.copies == before + 3
    for b, kv in zip(outside, tier.values(outside), strict=True):
        assert torch.equal(kv, history.block(0, b))


def test_slots_hold_more_blocks_under_a_codec(interpreted):
    sizes = {}
    for codec in ("exact", "bf16", "int8", "int4"):
        tier = History(SMALL.replace(codec=codec, block_size=128)).memory.full_layers[0].tier
        sizes[codec] = tier._slab.slot_bytes
    assert sizes["exact"] == sizes["bf16"] == 16 * BLOCK_BYTES
    assert sizes["int8"] < 0.54 * sizes["exact"] and sizes["int4"] < 0.29 * sizes["exact"]


def test_a_slot_given_to_another_block_is_not_written_over_by_a_late_copy(late):
    history = History(SMALL.replace(device_bytes=device_bytes(3)))
    history.read(120)
    tier, n = history.memory.full_layers[0].tier, history.memory.n_blocks
    tier.prefetch([0, 1, 2])  # into all slots, nobody waits for it
    kv = torch.randn(2, KV_HEADS, 8, DIM).bfloat16()
    tier.put_many(n, [kv])  # it takes one of them
    while late.queues["in"]:
        late.queues["in"].popleft().run()
    before = tier.counts.device
    (held,) = tier.values([n])
    assert torch.equal(held, kv) and tier.counts.device == before + 1


def test_a_copy_keeps_its_tensors_until_it_is_done():
    lanes = LateLanes()
    under_way = Transfers(lanes)
    arena = Arena(pinned=False, chunk_bytes=4096)
    source = torch.arange(256, dtype=torch.uint8)
    target = arena.take(256)
    address = target.data_ptr()
    under_way.send([(target, source)])
    del target
    gc.collect()
    others = [arena.take(256) for _ in range(4)]
    assert address not in {other.data_ptr() for other in others}
    (copy,) = lanes.queues["out"]
    assert (copy.pairs[0][0] == 255).all()  # nothing was copied so far
    under_way.await_on_host([copy.pairs[0][0]])
    assert torch.equal(copy.pairs[0][0], source)
    del copy
    under_way.send([])
    under_way.send([(torch.empty(1, dtype=torch.uint8), torch.ones(1, dtype=torch.uint8))])
    gc.collect()
    assert arena.take(256).data_ptr() == address


def test_a_copy_waits_for_the_one_that_writes_its_source():
    lanes = LateLanes()
    under_way = Transfers(lanes)
    first, second, third = (torch.full((8,), float(i)) for i in range(3))
    under_way.send([(second, first)])
    under_way.bring([(third, second)])
    under_way.await_on_device([third])
    assert torch.equal(third, torch.zeros(8))
    assert not lanes.queues["out"] and not lanes.queues["in"]


def test_only_copies_into_what_is_read_are_waited_for():
    lanes = LateLanes()
    under_way = Transfers(lanes)
    one, other = torch.zeros(4), torch.zeros(4)
    under_way.bring([(one, torch.ones(4))])
    under_way.bring([(other, torch.ones(4))])
    under_way.await_on_device([torch.zeros(4)])
    assert len(lanes.queues["in"]) == 2
    under_way.await_on_device([one])
    assert len(lanes.queues["in"]) == 1 and one.sum() == 4


def test_an_arena_uses_memory_again_and_never_twice_at_a_time():
    arena = Arena(pinned=False, chunk_bytes=64 * 1024)
    draw = random.Random(0)
    held: dict[int, torch.Tensor] = {}
    for i in range(3000):
        if len(held) > 20 or (held and draw.random() < 0.4):
            key = draw.choice(list(held))
            assert (held.pop(key) == key % 251).all()
        size = draw.choice([0, 1, 100, 256, 4096, 5000, 9000])
        held[i] = arena.take(size).fill_(i % 251)
        assert held[i].data_ptr() % 16 == 0
    assert all((memory == key % 251).all() for key, memory in held.items())
    assert arena.bytes <= 8 * 64 * 1024
    view = held.popitem()[1].view(-1)[:0]
    held.clear()
    gc.collect()
    for _ in range(100):
        arena.take(60 * 1024)
    assert arena.bytes <= 3 * 64 * 1024 and view.numel() == 0


def test_an_arena_gives_what_is_larger_than_a_chunk_a_chunk_of_its_own():
    arena = Arena(pinned=False, chunk_bytes=1024)
    large = arena.take(5000)
    small = arena.take(10)
    assert large.numel() == 5000 and small.numel() == 10 and arena.bytes >= 6000


def test_an_arena_wastes_little():
    arena = Arena(pinned=False, chunk_bytes=2**24)
    for n in (128, 1, 37, 100):
        nbytes = n * 4096 + 4096
        before = arena._chunks[-1].used if arena._chunks else 0
        kept = arena.take(nbytes)
        assert arena._chunks[-1].used - before <= nbytes * 33 / 32 and kept is not None


def test_threads_share_an_arena():
    arena = Arena(pinned=False, chunk_bytes=2**16)
    wrong = []

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(500):
            mine = [arena.take(draw.choice([64, 500, 3000])).fill_(seed) for _ in range(3)]
            wrong.extend(memory for memory in mine if not (memory == seed).all())

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kernels", ["interpret", "off"])
def test_a_model_reads_into_working_sets_what_its_journal_holds(late, monkeypatch, kernels):
    monkeypatch.setenv("LONGMEM_KERNELS", kernels)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "head_dim": DIM, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": VOCAB}
    config = LlamaConfig(**shape, **heads, max_position_embeddings=512)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").bfloat16().eval()
    model, info = attached(model)
    memory = new_memory(info, SMALL.replace(codec="int4", device_bytes=device_bytes(4)))
    with torch.no_grad():
        read_in_passes(model, memory, tokens(150), 25, 3)
    for layer, rows in zip(memory.full_layers, memory.export().kv, strict=True):
        served(layer, rows.permute(1, 2, 0, 3), memory)


def served(layer, kv: torch.Tensor, memory: SessionMemory) -> None:
    """The working set is initial tokens and blocks as they were stored ``[2, H_kv, N, D]``."""
    history = History.__new__(History)
    history.config, history.memory = memory.config, memory
    history.kv = {layer.spec.index: kv}
    parts = [kv[:, :, : memory.table.n_init]]
    parts += [history.block(layer.spec.index, b) for b in layer.working_set.stands_for[0]]
    k, v = torch.cat(parts, dim=2)
    assert len(parts) == 4 and torch.equal(layer.working_set.k, k)
    assert torch.equal(layer.working_set.v, v)
