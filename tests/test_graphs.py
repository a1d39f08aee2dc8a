"""Recycled steps through graphs: the same bits as step by step from the host, and the same memory.

Without a GPU a graph is its body, run anew each time, and kernels run in Triton's interpreter. Eager
steps beside them read the same kernels, so that equality is meant to the last bit where as many
sessions are packed; `CLOSE` where matrix products see another number of rows.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from pretend_device import pretend
from tool_styles import styled_tokenizer
from transformers import PreTrainedModel

from longmem import Engine
from longmem.attention import ModelInfo, attach
from longmem.config import Compressive, MemoryConfig
from longmem.feeding import Fed, Feed
from longmem.graphs import StepGraphs, capture, rows, runner
from longmem.graphs.capture import Captured
from longmem.graphs.waits import NoWaits
from longmem.memory import Gates, ReadSpan, Scratch, SessionMemory
from longmem.ops import working_set_attention
from longmem.ops.kernels import Launch
from longmem.ops.kernels.configs import tried
from longmem.packing import run_packed
from longmem.retrieval.softvote import SoftVote
from longmem.stores import SQLiteStore

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOSE = dict(atol=0.3, rtol=0.05)
"""Logits of two bfloat16 models of two layers, of which one rounds other sums: they reach 10."""
SMALL = MemoryConfig(
    n_init=4, n_local=20, block_size=8, topk=3, repr_topk=2, lookup_span=16, stride=4
)
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "capped and sliding": (
        "gemma2",
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 12},
    ),
    "normed keys": ("qwen3", {}),
    "no rotation above": ("smollm3", {"no_rope_layers": [1, 0]}),
    "interleaved": ("glm", {"partial_rotary_factor": 0.5}),
    "looking": ("llama", {"rope_parameters": _DYNAMIC}),
    "sinks": (
        "gpt_oss",
        {"layer_types": ["full_attention"] * 2, "num_local_experts": 2, "num_experts_per_tok": 1},
    ),
}
CHANGES: list[dict[str, Any]] = [
    {},
    {"selection": "kv_head"},
    {"far_positions": "ordered", "repr_by": "logits"},
    {"lookup": "all"},
    {"repr_topk": 8, "lookup_layers": (0,)},
]


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels serve. The interpreter runs one program after the other, so that there are few here, and
    what steps without a look-up do not need is done by torch."""
    if DEVICE.type == "cpu":
        monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
        monkeypatch.setattr(working_set_attention, "_kernels_take", lambda tensors: False)
        monkeypatch.setattr(SoftVote, "fused", False)
    with tried("step_attention", "attend", Launch({"PROGRAMS": 2, "BLOCK_N": 32})):
        yield


def model_of(
    kind: str, kv_heads: int = 1, device: torch.device = DEVICE
) -> tuple[PreTrainedModel, ModelInfo]:
    """A random model of two layers that kernels serve."""
    name, changes = KINDS[kind]
    sizes = dict(num_hidden_layers=2, num_attention_heads=2 * kv_heads, head_dim=64)
    sizes["num_key_value_heads"] = kv_heads
    model = architectures.build(name, dtype=torch.bfloat16, **{**sizes, **changes}).to(device)
    return model, attach(model)


@pytest.fixture(scope="module")
def plain() -> tuple[PreTrainedModel, ModelInfo]:
    return model_of("plain")


class Reader:
    """Sessions of one model, fed pass by pass, with graphs or without."""

    def __init__(
        self,
        made: tuple[PreTrainedModel, ModelInfo],
        config: MemoryConfig = SMALL,
        *,
        graphs: bool = True,
        lengths: Sequence[int] = (52,),
    ) -> None:
        self.model, self.info = made
        self.config, self.scratch = config, Scratch()
        self.graphs = StepGraphs(self.model, self.info.layers) if graphs else None
        self.memories = [self.session(n) for n in lengths]

    def session(self, n: int) -> SessionMemory:
        """A session that has read n tokens."""
        shape = (len(self.info.layers), self.info.layers[0].heads)
        gates = Gates(torch.full(shape, 0.5)) if self.config.compressive else None
        memory = SessionMemory(self.info.layers, self.config, self.config.n_init, gates=gates)
        ids = tokens(n)
        for at in range(0, n, 32):
            part = ids[at : at + 32]
            sizes = [min(16, len(part) - i) for i in range(0, len(part), 16)]
            self.feed([Feed(memory, part, [ReadSpan(size, size) for size in sizes])])
        return memory

    def feed(self, feeds: Sequence[Feed]) -> torch.Tensor:
        """One pass; logits ``[S, V]``."""
        outcomes = run_packed(self.model, feeds, False, self.scratch, self.graphs)
        return torch.stack([logits_of(outcome) for outcome in outcomes])

    def step(
        self, i: int, refreshes: bool = False, of: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Step i of all sessions, or of those `of` names; logits ``[S, V]``."""
        chosen = range(len(self.memories)) if of is None else of
        span = ReadSpan(1, int(refreshes))
        return self.feed([Feed(self.memories[s], [(7 * i + s) % 200], [span]) for s in chosen])


def logits_of(outcome: Fed | Exception) -> torch.Tensor:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome.logits


def tokens(n: int) -> list[int]:
    return torch.randint(0, 200, (n,), generator=torch.Generator().manual_seed(n)).tolist()


def state_of(memory: SessionMemory) -> dict[str, torch.Tensor]:
    """All that a commit would store, but for where buffers lie."""
    exported = memory.export()
    kv = {f"kv.{i}": each for i, each in enumerate(exported.kv)}
    state = {k: v for k, v in exported.state.items() if not k.startswith("place.")}
    firsts = {k: v[:1] for k, v in exported.state.items() if k.startswith("place.")}
    return kv | exported.blocks | state | firsts


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


class _Uncaptured:
    """In place of `Captured`: the work, done anew each time."""

    def __init__(self, work: Callable[[], Any], *_: Any) -> None:
        self.run = work


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *(("plain", changes) for changes in CHANGES),
        *((kind, {}) for kind in KINDS if kind not in ("plain", "looking")),
    ],
)
def test_steps_through_a_graph_are_the_steps_without_one_bit_for_bit(
    kind: str, changes: dict[str, Any]
) -> None:
    made, config = model_of(kind, 1 + ("selection" in changes)), SMALL.replace(**changes)
    by_graph, by_hand = Reader(made, config), Reader(made, config, graphs=False)
    for i in range(4):
        logits = [reader.step(i, refreshes=i in (0, 2)) for reader in (by_graph, by_hand)]
        assert torch.equal(*logits), i
    assert_same(state_of(by_graph.memories[0]), state_of(by_hand.memories[0]))
    assert by_graph.graphs is not None and by_graph.graphs.replays == 2


def test_sessions_that_come_and_go_read_what_they_would_read_alone(plain: Any) -> None:
    together = Reader(plain, lengths=(50, 9, 33))
    alone = [Reader(plain, lengths=(n,)) for n in (50, 9, 33)]
    present = [(0,), (1, 0, 2), (2, 1)]
    for i, of in enumerate(present):
        logits = together.step(i, of=of)
        for row, s in zip(logits, of, strict=True):
            expected = alone[s].feed(
                [Feed(alone[s].memories[0], [(7 * i + s) % 200], [ReadSpan(1, 0)])]
            )
            torch.testing.assert_close(row, expected[0], **CLOSE)
    assert together.graphs is not None
    assert together.graphs.replays == len(present) and together.graphs.captures == 3
    for memory, other in zip(together.memories, alone, strict=True):
        assert memory.n_tokens == other.memories[0].n_tokens
        for a, b in zip(memory.layers, other.memories[0].layers, strict=True):
            torch.testing.assert_close(a.local.raw, b.local.raw, **CLOSE)


def test_four_sessions_equal_four_packed_by_hand_while_some_look_up(plain: Any) -> None:
    lengths = (40, 9, 33, 21)
    by_graph, by_hand = (Reader(plain, lengths=lengths, graphs=on) for on in (True, False))
    for i in range(2):
        assert torch.equal(by_graph.step(i, refreshes=i == 0), by_hand.step(i, refreshes=i == 0))
    for a, b in zip(by_graph.memories, by_hand.memories, strict=True):
        assert_same(state_of(a), state_of(b))


def test_buffers_grow_and_move_under_a_graph(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "AHEAD", 2)
    monkeypatch.setattr("longmem.memory.window._FIRST_CAPACITY", 16)
    by_graph, by_hand = (Reader(plain, lengths=(27,), graphs=on) for on in (True, False))
    for i in range(7):
        assert torch.equal(by_graph.step(i), by_hand.step(i)), i
    assert_same(state_of(by_graph.memories[0]), state_of(by_hand.memories[0]))
    assert by_graph.graphs is not None and by_graph.graphs.captures == 2


def test_the_journal_gets_what_graphs_wrote_when_it_is_asked_for(plain: Any) -> None:
    reader = Reader(plain, lengths=(40,))
    memory = reader.memories[0]
    memory.export(), memory.exported()
    for i in range(5):
        reader.step(i)
    assert memory.uncounted == 5 and memory.n_tokens == 45
    window = memory.window_tokens
    assert window == len(memory.layers[0].local) and memory.uncounted == 0
    kv = memory.export().kv
    for layer, stored in zip(memory.layers, kv, strict=True):
        newest = torch.stack((layer.local.raw[:, -5:], layer.local.v[:, -5:]))
        assert torch.equal(stored.permute(1, 2, 0, 3), newest.cpu())


def test_a_rewound_session_takes_the_same_steps_again(plain: Any) -> None:
    reader = Reader(plain)
    memory = reader.memories[0]
    reader.step(0), reader.step(1)
    mark = memory.mark()
    before = state_of(memory)
    first = [reader.step(i, refreshes=i == 2) for i in (2, 3, 4)]
    memory.rewind(mark)
    assert memory.n_tokens == 54 and memory.uncounted == 0
    assert_same(state_of(memory), before)
    again = [reader.step(i, refreshes=i == 2) for i in (2, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_step_that_fails_leaves_sessions_that_can_be_rewound(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "Captured", _Uncaptured)  # a replay runs no code of the model
    reader, other = Reader(plain, lengths=(40, 9)), Reader(plain, lengths=(40, 9))
    marks = [memory.mark() for memory in reader.memories]
    reader.step(0)
    with monkeypatch.context() as broken:  # in the middle of the second layer
        broken.setattr(reader.model.model.layers[1].mlp, "forward", _out_of_order)
        with pytest.raises(RuntimeError, match="out of order"):
            reader.step(1)
    for memory, mark in zip(reader.memories, marks, strict=True):
        memory.rewind(mark)
    for i in range(2):
        assert torch.equal(*(each.step(i, refreshes=i == 0) for each in (reader, other)))


def _out_of_order(*_: Any) -> None:
    raise RuntimeError("out of order")


@pytest.mark.parametrize(
    ("changes", "spans"),
    [
        ({"topk_tokens": 16}, [ReadSpan(1, 0)]),
        ({"compressive": Compressive(), "max_blocks": 3}, [ReadSpan(1, 0)]),
        ({"window": "segment", "topk": 0}, [ReadSpan(1, 0)]),
        ({}, [ReadSpan(1, 1)]),
        ({}, [ReadSpan(2, 0)]),
    ],
)
def test_what_a_graph_cannot_do_is_done_without_one(
    plain: Any, changes: dict[str, Any], spans: list[ReadSpan]
) -> None:
    reader = Reader(plain, SMALL.replace(**changes), lengths=(9,))
    reader.step(0, refreshes=True)
    n = sum(span.tokens for span in spans)
    reader.feed([Feed(reader.memories[0], tokens(n), spans)])
    assert reader.graphs is not None and reader.graphs.replays == 0
    assert reader.memories[0].n_tokens == 10 + n


def test_recycled_steps_go_apart_where_they_are_many_and_others_look_up_beside_them(
    plain: Any,
) -> None:
    lengths = (40, 9, 33, 5, 20)
    apart, few = Reader(plain, lengths=lengths), Reader(plain, lengths=lengths[1:])
    for reader, refreshing in ((apart, 0), (few, 3)):
        spans = [ReadSpan(1, int(s == refreshing)) for s in range(len(reader.memories))]
        reader.feed([Feed(m, [5], [span]) for m, span in zip(reader.memories, spans, strict=True)])
        assert [memory.uncounted for memory in reader.memories] == (
            [0, 1, 1, 1, 1] if reader is apart else [0, 0, 0, 0]
        )
    for memory, other in zip(apart.memories[1:4], few.memories, strict=False):
        assert memory.n_tokens == other.n_tokens
        for a, b in zip(memory.layers, other.layers, strict=True):
            torch.testing.assert_close(a.local.raw, b.local.raw, **CLOSE)


def test_a_model_that_cannot_be_captured_goes_on_without_graphs_and_says_so_once(
    plain: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(runner, "Captured", refuse)
    reader, by_hand = Reader(plain), Reader(plain, graphs=False)
    with caplog.at_level(logging.WARNING):
        for i in range(2):
            assert torch.equal(reader.step(i), by_hand.step(i))
    assert reader.graphs is not None and reader.graphs.replays == 0
    assert "not permitted when stream is capturing" in str(reader.graphs.refused)
    assert [record.name for record in caplog.records] == ["longmem.graphs.runner"]
    assert_same(state_of(reader.memories[0]), state_of(by_hand.memories[0]))


def test_sessions_of_other_settings_than_the_graphs_are_read_without_them(plain: Any) -> None:
    reader = Reader(plain, lengths=(9,))
    reader.step(0)
    reader.config = SMALL.replace(n_local=24)
    reader.memories.append(reader.session(9))
    reader.step(1, of=[1])
    assert reader.graphs is not None and reader.graphs.replays == 1
    assert [memory.n_tokens for memory in reader.memories] == [10, 10]


def test_conversations_through_graphs_are_those_without_also_resumed_and_after_a_cancelled_reply(
    tmp_path: Path,
) -> None:
    tokenizer = styled_tokenizer("nano")
    sizes = dict(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=64)
    model = architectures.build("llama", dtype=torch.bfloat16, vocab_size=len(tokenizer), **sizes)
    config = SMALL.replace(stride=3, n_local=32)
    by_graph, by_hand = (
        Engine(model.to(DEVICE), tokenizer, config, graphs=graphs) for graphs in (True, False)
    )
    with SQLiteStore(tmp_path) as store, by_hand.session("b", store=store) as whole:
        with by_graph.session("a", store=store) as session:
            told = [session.ask("Hi", max_new_tokens=4), whole.ask("Hi", max_new_tokens=4)]
            for _ in session.stream("Never mind", max_new_tokens=4):
                break
        with by_graph.session("a", store=store) as session:  # resumed from the store
            told += [each.ask("So?", max_new_tokens=4) for each in (session, whole)]
            a, b = (each._conversation.memory for each in (session, whole))
            assert [told[0].text, told[2].text] == [told[1].text, told[3].text]
            assert a.n_tokens == b.n_tokens
            for own, other in zip(a.layers, b.layers, strict=True):
                assert torch.equal(own.local.raw, other.local.raw)
                assert torch.equal(own.local.v, other.local.v)
                assert torch.equal(own.local.mass, other.local.mass)
    assert by_graph.graphs is not None and by_graph.graphs.replays >= 4 and by_hand.graphs is None


@pytest.mark.parametrize("kind", ["plain", "capped and sliding", "no rotation above"])
def test_a_step_asks_the_host_for_nothing_and_needs_no_more_memory(kind: str) -> None:
    reader = Reader(model_of(kind), lengths=(9,))
    reader.step(0)
    assert reader.graphs is not None
    (graph,) = reader.graphs._graphs.values()
    bytes_before = reader.graphs.scratch_bytes
    with NoWaits(DEVICE), torch.no_grad():
        graph.body()
    reader.step(1)
    assert reader.graphs.scratch_bytes == bytes_before > 0


def test_what_waits_for_the_device_is_found_before_a_capture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever a model's own code does: here a rotation that looks at how far the text has come."""
    monkeypatch.setattr(runner, "Captured", _Uncaptured)
    reader = Reader(model_of("looking"), lengths=(9,))
    reader.step(0)
    assert reader.graphs is not None
    (graph,) = reader.graphs._graphs.values()
    with NoWaits(DEVICE), torch.no_grad(), pytest.raises(RuntimeError, match="waits for"):
        graph.body()
    x = torch.arange(3, device=DEVICE)
    for wait in (
        lambda: x[x > 1],
        lambda: x.masked_select(x > 1),
        lambda: bool(x[0]),
        lambda: torch.equal(x, x),
    ):
        with NoWaits(DEVICE), pytest.raises(RuntimeError, match="waits for"):
            wait()
    with NoWaits(DEVICE):
        assert x[x.flip(0)].sum().shape == x.where(x > 1, 0).sum().shape


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the device is pretended where there is none")
def test_a_step_is_one_transfer_to_the_device_and_one_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "Captured", _Uncaptured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", tuple)
    with pretend(1) as world:
        reader = Reader(model_of("plain", device=torch.device("cuda", 0)), lengths=(9,))
        assert reader.graphs is not None
        feed = Feed(reader.memories[0], [5], [ReadSpan(1, 0)], best=True)
        reader.feed([feed])
        before = world.transfers.copy()
        with world.counted() as waits:
            reader.feed([feed])
        assert waits == {"download": 1} and reader.graphs.replays == 2
        crossed = world.transfers - before
        del crossed["within"]  # from the device to itself
        assert crossed == {"pinned upload": 1, "download": 1}


class _Cuda:
    """Stands in for `torch.cuda` and notes what is asked of it."""

    class CUDAGraph:
        def __init__(self) -> None:
            self.replayed = 0

        def replay(self) -> None:
            self.replayed += 1

    def __init__(self) -> None:
        self.at: list[str] = ["main"]
        self.now = self

    def current_stream(self, device: Any) -> _Cuda:
        return self

    def Stream(self, device: Any) -> _Cuda:
        return self

    def set_stream(self, stream: Any) -> None:
        self.at.append("back")

    def wait_stream(self, other: Any) -> None:
        self.at.append("wait")

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.at.append("aside")
        yield

    @contextmanager
    def graph(self, graph: Any, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local" and stream is self
        self.at.append("capture")
        yield
        self.at.append("captured")


def test_work_is_warmed_up_beside_and_captured_once_then_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"pool": None, "stream": None, "capture_error_mode": "thread_local"}
    inspect.signature(torch.cuda.graph).bind(None, **options)
    cuda = _Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(capture, "_stream", cuda.Stream)
    work, trial = (lambda: cuda.at.append("work")), (lambda: cuda.at.append("trial"))
    captured = Captured(work, torch.device("cuda"), None, trial)
    before, then = ["main", "wait", "aside"], ["wait", "capture", "work", "captured"]
    assert cuda.at == [*before, "trial", "work", "work", *then]
    captured.run(), captured.run()
    assert captured._graph.replayed == 2 and cuda.at.count("work") == 3


def test_after_a_capture_that_fails_the_thread_goes_on_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = _Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    monkeypatch.setattr(capture, "_stream", cuda.Stream)

    def work() -> None:
        if "capture" in cuda.at:
            raise RuntimeError("cannot be captured")

    with pytest.raises(RuntimeError, match="cannot be captured"):
        Captured(work, torch.device("cuda"), None)
    assert cuda.at[-1] == "back"
