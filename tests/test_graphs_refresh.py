"""Refreshes through graphs: the same bits as step by step from the host, and the same memory after them.

As in `test_graphs`, a graph is its body where there is no GPU, and kernels are interpreted; few blocks
keep that short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import architectures
import pytest
import torch
from pretend_device import pretend
from tool_styles import styled_tokenizer
from transformers import PreTrainedModel

from longmem import Engine
from longmem.attention import ModelInfo, attach
from longmem.compiled import Compiled
from longmem.config import MemoryConfig
from longmem.feeding import Fed, Feed
from longmem.graphs import StepGraphs, refreshes, runner
from longmem.graphs.waits import NoWaits
from longmem.memory import ReadSpan, Scratch, SessionMemory
from longmem.ops import working_set_attention
from longmem.ops.block_gather.choosing import Told, place_chosen
from longmem.ops.kernels import Launch
from longmem.ops.kernels.configs import tried
from longmem.ops.step_attention.places import Places
from longmem.packing import run_packed

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = MemoryConfig(
    n_init=4, n_local=20, block_size=8, topk=2, repr_topk=2, lookup_span=16, stride=4
)


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if DEVICE.type == "cpu":
        monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
        monkeypatch.setattr(working_set_attention, "_kernels_take", lambda tensors: False)
    monkeypatch.setattr(refreshes, "FEWEST_BLOCKS", 4)
    with tried("step_attention", "attend", Launch({"PROGRAMS": 2, "BLOCK_N": 32})):
        yield


def model_of(
    name: str = "llama", device: torch.device = DEVICE, **changes: Any
) -> tuple[PreTrainedModel, ModelInfo]:
    sizes = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=64)
    model = architectures.build(name, dtype=torch.bfloat16, **{**sizes, **changes}).to(device)
    return model, attach(model)


@pytest.fixture(scope="module")
def plain() -> tuple[PreTrainedModel, ModelInfo]:
    return model_of()


class Reader:
    """Sessions of one model, fed pass by pass, with graphs or without."""

    def __init__(
        self,
        made: tuple[PreTrainedModel, ModelInfo],
        config: MemoryConfig = SMALL,
        *,
        graphs: bool,
        lengths: Sequence[int] = (49,),
    ) -> None:
        self.model, self.info = made
        self.config, self.scratch = config, Scratch()
        wanted = self.info.layers, graphs
        self.graphs = StepGraphs.of(self.model, *wanted)
        self.memories = [self._session(n) for n in lengths]
        self.told: list[Any] = []

    def _session(self, n: int) -> SessionMemory:
        memory = SessionMemory(self.info.layers, self.config, self.config.n_init)
        generator = torch.Generator().manual_seed(n)
        ids = torch.randint(0, 200, (n,), generator=generator).tolist()
        for at in range(0, n, 32):
            part = ids[at : at + 32]
            self.feed([Feed(memory, part, [ReadSpan(len(part), 0)])])
        return memory

    def feed(self, feeds: Sequence[Feed]) -> torch.Tensor:
        outcomes = run_packed(self.model, feeds, False, self.scratch, self.graphs)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        self.told = [outcome for outcome in outcomes if isinstance(outcome, Fed)]
        return torch.stack([fed.logits for fed in self.told])

    def step(self, i: int, refreshes: bool = True, of: Sequence[int] | None = None) -> torch.Tensor:
        chosen = range(len(self.memories)) if of is None else of
        span = ReadSpan(1, int(refreshes))
        feeds = [Feed(self.memories[s], [(7 * i + s) % 200], [span], trace=True) for s in chosen]
        return self.feed(feeds)


def state_of(memory: SessionMemory) -> dict[str, torch.Tensor]:
    """All that a commit would store, but for where buffers lie, and the working sets."""
    exported = memory.export()
    state = {k: v for k, v in exported.state.items() if not k.startswith("place.")}
    state |= exported.blocks | {f"kv.{i}": each for i, each in enumerate(exported.kv)}
    for layer in memory.full_layers:
        far = layer.working_set
        state |= {f"far.{layer.spec.index}": torch.stack((far.k, far.v)).cpu()}
    return state


def assert_same(a: SessionMemory, b: SessionMemory) -> None:
    one, other = state_of(a), state_of(b)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert a.n_tokens == b.n_tokens
    for own, twin in zip(a.full_layers, b.full_layers, strict=True):
        assert [*map(list, own.working_set.stands_for)] == [*map(list, twin.working_set.stands_for)]
        assert own.working_set._starts == twin.working_set._starts
        assert own.tier.counts == twin.tier.counts and own.fetched == twin.fetched


def both(made: Any, config: MemoryConfig = SMALL, **how: Any) -> tuple[Reader, Reader]:
    return Reader(made, config, graphs=True, **how), Reader(made, config, graphs=False, **how)


def assert_told_alike(one: Reader, other: Reader) -> None:
    for own, twin in zip(one.told, other.told, strict=True):
        a, b = own.reading, twin.reading
        assert a.chosen == b.chosen and a.refreshed == b.refreshed and a.refreshed[0]
        for x, y in zip(a.choices, b.choices, strict=True):
            assert (x.layer, x.blocks) == (y.layer, y.blocks)
            assert x.shares == pytest.approx(y.shares, rel=1e-5)


SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12}
SINKS = {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["full_attention"] * 2}


@pytest.mark.parametrize(
    ("model", "sizes", "changes"),
    [
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 2}, {}),
        ("llama", {"num_hidden_layers": 3}, {"lookup_layers": (1,), "repr_topk": 8}),
        ("llama", {"hidden_size": 64}, {"device_bytes": 0, "max_blocks": 3}),
        ("gemma2", SLIDING, {"repr_by": "logits", "topk": 3}),
        ("gpt_oss", SINKS, {}),
    ],
)
def test_refreshes_through_a_graph_are_those_without_one_bit_for_bit(
    model: str, sizes: dict[str, Any], changes: dict[str, Any]
) -> None:
    by_graph, by_hand = both(model_of(model, **sizes), SMALL.replace(**changes))
    for i in range(3):
        a, b = (reader.step(i, refreshes=i != 1) for reader in (by_graph, by_hand))
        assert torch.equal(a, b), i
        if i != 1:
            assert_told_alike(by_graph, by_hand)
    assert_same(by_graph.memories[0], by_hand.memories[0])
    assert by_graph.graphs is not None and by_graph.graphs.refreshes is not None
    assert (by_graph.graphs.replays, by_graph.graphs.refreshes.replays) == (1, 2)


def test_blocks_are_found_wherever_slots_and_copies_have_brought_them(plain: Any) -> None:
    """Room for two slots of a layer: every look-up pushes blocks out."""
    slots = 2 * 2 * SMALL.block_size * plain[1].layers[0].bytes_per_token
    by_graph, by_hand = both(plain, SMALL.replace(device_bytes=slots), lengths=(77,))
    for i in range(2):
        assert torch.equal(by_graph.step(5 * i), by_hand.step(5 * i)), i
        assert_told_alike(by_graph, by_hand)
    assert_same(by_graph.memories[0], by_hand.memories[0])
    counts = by_graph.memories[0].full_layers[0].tier.counts
    assert counts.device and counts.host


def test_three_sessions_share_a_graph_of_four_and_one_that_has_few_blocks_goes_without(
    plain: Any,
) -> None:
    by_graph, by_hand = both(plain, lengths=(49, 41, 60))
    assert torch.equal(by_graph.step(0), by_hand.step(0))
    assert_told_alike(by_graph, by_hand)
    for a, b in zip(by_graph.memories, by_hand.memories, strict=True):
        assert_same(a, b)
    assert by_graph.graphs is not None and by_graph.graphs.refreshes is not None
    assert by_graph.graphs.refreshes.replays == by_graph.graphs.refreshes.captures == 1
    for reader in (by_graph, by_hand):
        reader.memories = [*reader.memories[:1], reader._session(22)]
    assert torch.equal(by_graph.step(2), by_hand.step(2))
    assert by_graph.graphs.refreshes.replays == 1


def test_some_look_up_in_one_graph_while_the_others_step_in_another(plain: Any) -> None:
    by_graph, by_hand = both(plain, lengths=(49, 41))
    for reader in (by_graph, by_hand):
        spans = [ReadSpan(1, 1)], [ReadSpan(1, 0)]
        reader.feed([Feed(m, [5], s) for m, s in zip(reader.memories, spans, strict=True)])
    assert by_graph.graphs is not None and by_graph.graphs.refreshes is not None
    assert by_graph.graphs.replays == by_graph.graphs.refreshes.replays == 1
    for a, b in zip(by_graph.memories, by_hand.memories, strict=True):
        assert a.n_tokens == b.n_tokens and a.uncounted == 1
        for own, twin in zip(a.layers, b.layers, strict=True):  # products of other numbers of rows
            torch.testing.assert_close(own.local.raw, twin.local.raw, atol=0.1, rtol=0.05)


def test_a_session_rewound_over_a_refresh_takes_the_same_one_again(plain: Any) -> None:
    reader, by_hand = both(plain)
    memory = reader.memories[0]
    mark = memory.mark()
    first = [reader.step(i) for i in range(2)]
    memory.rewind(mark)
    assert memory.n_tokens == 49 and memory.uncounted == 0
    assert all(torch.equal(reader.step(i), first[i]) for i in range(2))
    assert all(torch.equal(by_hand.step(i), first[i]) for i in range(2))
    ours, theirs = state_of(memory), state_of(by_hand.memories[0])
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    "changes",
    [
        {"selection": "kv_head"},
        {"far_positions": "ordered"},
        {"contiguity": 1},
        {"codec": "int8"},
        {"lookup": "all"},
        {"topk": 0},
    ],
)
def test_what_needs_the_host_in_between_goes_without_a_graph(
    plain: Any, changes: dict[str, Any]
) -> None:
    reader = Reader(plain, SMALL.replace(**changes), graphs=True, lengths=(9,))
    assert reader.graphs is not None and reader.graphs.refreshes is not None
    feed = Feed(reader.memories[0], [5], [ReadSpan(1, 1)])
    assert not reader.graphs.refreshes.takes(feed)


def test_a_policy_that_looks_at_queries_and_layers_that_look_up_alone_go_without_one(
    plain: Any,
) -> None:
    reader = Reader(plain, graphs=True, lengths=(9,))
    assert reader.graphs is not None and reader.graphs.refreshes is not None
    memory, takes = reader.memories[0], reader.graphs.refreshes.takes
    span = ReadSpan(1, 1)
    assert takes(Feed(memory, [5], [span], decide=lambda *_: True, asks=False))
    assert not takes(Feed(memory, [5], [span], decide=lambda *_: True))
    assert not takes(Feed(memory, [5], [ReadSpan(1, 1, (0,))]))
    assert not takes(Feed(memory, [5], [ReadSpan(1, 0)]))
    assert not takes(Feed(memory, [5, 6], [ReadSpan(2, 2)]))


def test_where_a_block_lies_in_the_store_alone_there_is_no_directory(plain: Any) -> None:
    memory = Reader(plain, SMALL.replace(device_bytes=0), graphs=False).memories[0]
    layer = memory.full_layers[0]
    layer.close(3)
    host = layer.tier._host
    assert layer.tier.directory(0, 3)
    host.commit(3)
    assert layer.tier.directory(0, 3)
    host.shrink(host.bytes - 1)
    assert layer.tier.directory(0, 3) is None
    assert layer.tier.directory(1, 3)


def test_a_refresh_asks_the_host_for_nothing_and_needs_no_more_memory(plain: Any) -> None:
    reader = Reader(plain, graphs=True)
    reader.step(0)
    assert reader.graphs is not None and reader.graphs.refreshes is not None
    (graph,) = reader.graphs.refreshes._graphs.values()
    before = reader.graphs.refreshes.scratch_bytes
    with NoWaits(DEVICE), torch.no_grad():
        graph.body()
    reader.step(1)
    assert reader.graphs.refreshes.scratch_bytes == before > 0


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the device is pretended where there is none")
def test_the_host_waits_once_for_what_was_chosen_and_once_for_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "Captured", _Uncaptured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
    with pretend(1) as world:
        reader = Reader(model_of(device=torch.device("cuda", 0)), graphs=True)
        assert reader.graphs is not None and reader.graphs.refreshes is not None
        feed = Feed(reader.memories[0], [5], [ReadSpan(1, 1)], trace=True, best=True)
        reader.feed([feed])
        with world.counted() as waits:
            reader.feed([feed])
        assert waits == {"download": 2} and reader.graphs.refreshes.replays == 2


class _Uncaptured:
    """In place of `Captured`: the work, done anew each time."""

    def __init__(self, work: Callable[[], Any], *_: Any) -> None:
        self.run = work


def test_a_graph_is_outgrown_by_blocks_and_one_for_which_memory_is_short_is_done_without(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_graph, by_hand = both(plain, lengths=(49, 77))
    assert by_graph.graphs is not None and by_graph.graphs.refreshes is not None
    refreshes = by_graph.graphs.refreshes
    for i in range(2):  # 3 blocks fit, 6 do not
        assert torch.equal(by_graph.step(0, of=[i]), by_hand.step(0, of=[i]))
    assert (refreshes.captures, refreshes.replays) == (2, 2)
    monkeypatch.setattr(runner, "Captured", _short_of_memory)
    assert torch.equal(by_graph.step(1), by_hand.step(1))  # of two sessions
    by_graph.step(2, of=[0])
    assert (refreshes.captures, refreshes.replays, refreshes.refused) == (2, 3, None)


def test_what_cannot_be_compiled_is_captured_as_it_is(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def captured(body: Any, *_: Any) -> _Uncaptured:
        if body._run is not None:
            raise RuntimeError("so many forms are not compiled")
        return _Uncaptured(body)

    monkeypatch.setattr(runner, "Captured", captured)
    reader, by_hand = both(plain, lengths=(9,))
    assert reader.graphs is not None
    reader.graphs._run = cast(Compiled, object())
    assert torch.equal(reader.step(0, refreshes=False), by_hand.step(0, refreshes=False))
    assert reader.graphs.replays == 1 and "so many forms" in str(reader.graphs.uncompiled)


def _short_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("no room")


def test_a_reply_looks_up_through_graphs_and_says_the_same() -> None:
    tokenizer = styled_tokenizer("nano")
    sizes = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=64)
    model = architectures.build("llama", dtype=torch.bfloat16, vocab_size=len(tokenizer), **sizes)
    config = SMALL.replace(stride=2, topk=1)
    replies, counts = [], []
    for graphs in (True, False):
        engine = Engine(model.to(DEVICE), tokenizer, config, graphs=graphs)
        with engine.session() as session:
            replies.append(session.ask("What is it that you see? " * 3, max_new_tokens=4))
        if graphs:
            counts = [engine.graphs.replays, engine.graphs.refreshes.replays]
    assert replies[0].text == replies[1].text and min(counts) > 0
    assert replies[0].usage == replies[1].usage


@pytest.mark.parametrize(
    ("dim", "dtype", "kv_heads"),
    [(64, torch.bfloat16, 1), (80, torch.float16, 3), (128, torch.bfloat16, 2)],
)
def test_chosen_blocks_are_placed_behind_the_initial_tokens_and_their_rows_counted(
    dim: int, dtype: torch.dtype, kv_heads: int
) -> None:
    generator = torch.Generator().manual_seed(dim)
    tokens = [5, 64, 1, 65, 63]
    blocks = [
        torch.randn(2, kv_heads, n, dim, generator=generator).to(DEVICE, dtype) for n in tokens
    ]
    directory = torch.tensor([[b.data_ptr(), n] for b, n in zip(blocks, tokens, strict=True)])
    directory = directory.to(DEVICE)
    chosen, n_init = [[0, 2, 3], [1, 4, -1], [-1, -1, -1]], [3, 0, 7]
    far = torch.full((3, 2, kv_heads, 140, dim), float("nan"), dtype=dtype, device=DEVICE)
    addresses = torch.tensor([[k.data_ptr(), v.data_ptr(), 0, 0, 0, 0] for k, v in far])
    extents = torch.tensor([[140, 0, 0, 0]] * 3, dtype=torch.int32)
    lengths = torch.full((3, kv_heads), -1, dtype=torch.int32, device=DEVICE)
    places = Places(addresses.to(DEVICE), extents.to(DEVICE), lengths)
    rows = torch.tensor([[directory.data_ptr() * (s < 2), n] for s, n in enumerate(n_init)])
    table = torch.tensor([[0, 0, 0, min(s, 1), 5, 0] for s in range(3)], device=DEVICE)
    totals = torch.arange(15.0, device=DEVICE).view(3, 5)
    votes = torch.full((3, 3), float("nan"), device=DEVICE)
    ids = torch.tensor(chosen, dtype=torch.int32, device=DEVICE)
    told = Told(table, totals, votes)
    place_chosen(ids, rows.to(DEVICE), places, 65, blocks[0], Scratch(), told)
    for s, own in enumerate(chosen):
        held = [blocks[b] for b in own if b >= 0]
        stop = n_init[s] + sum(kv.shape[2] for kv in held)
        assert lengths[s].tolist() == [stop] * kv_heads
        assert far[s][:, :, : n_init[s]].isnan().all() and far[s][:, :, stop:].isnan().all()
        if held:
            assert torch.equal(far[s][:, :, n_init[s] : stop], torch.cat(held, 2))
    assert votes.tolist() == [[0.0, 2.0, 3.0], [5.0, 8.0, 0.0], [0.0, 0.0, 0.0]]
