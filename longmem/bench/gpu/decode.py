"""Time of a decode step over a history: with the last look-up's blocks, with a look-up, in a reply."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median

import torch

from longmem.bench.gpu.clock import each_ms
from longmem.bench.gpu.model import random_ids
from longmem.bench.gpu.shapes import Shape
from longmem.decoding import Decoding, Extensions
from longmem.engine import Engine
from longmem.feeding import Feed, Segment
from longmem.memory import ReadSpan, SessionMemory
from longmem.sampling import Sampling, new_generator
from longmem.strand import Strand
from longmem.types import Turn

_QUESTION_TOKENS = 8


@dataclass(frozen=True)
class StepTimes:
    """Decoding over one history.

    Args:
        history: tokens held.
        codec: of its blocks.
        compiled: whether torch compiled what the recycled steps do besides attention.
        stride: steps under one look-up.
        recycled_ms, refresh_ms: of each step, its likeliest token brought to the host. Tokens are
            drawn, not the likeliest, so that refreshes look up other blocks than those before.
        reply_ms: per token of a whole reply, its look-ups counted; None where none was decoded.
        blocks_from: per refresh, blocks that came from slots on the device and from host memory.
    """

    history: int
    codec: str
    compiled: bool
    stride: int
    recycled_ms: tuple[float, ...]
    refresh_ms: tuple[float, ...]
    reply_ms: float | None
    blocks_from: dict[str, float]

    @property
    def recycled(self) -> float:
        """Median of the recycled steps."""
        return median(self.recycled_ms)

    @property
    def refresh(self) -> float:
        """Median of the refresh steps."""
        return median(self.refresh_ms)

    @property
    def step(self) -> float:
        """A step of a reply: one look-up every `stride` steps."""
        return (self.refresh + (self.stride - 1) * self.recycled) / self.stride

    def row(self) -> dict[str, object]:
        """JSON-able."""
        medians = {"recycled": self.recycled, "refresh": self.refresh, "step": self.step}
        return {**asdict(self), "median_ms": medians}


def measure_steps(
    engine: Engine, memory: SessionMemory, shape: Shape, compiled: bool = False
) -> StepTimes:
    """Decode behind a history, which is as before when it is done; `compiled` is what `engine` does."""
    stride, history = engine.config.stride, memory.n_tokens
    mark = memory.mark()
    try:
        steps = steps_of([memory], engine, shape)
        each_ms([next(steps) for _ in range(2 * stride)], engine.device)  # captures, compiles
        before = _found(memory)
        times = each_ms((next(steps) for _ in range(shape.rounds * stride)), engine.device)
        after = _found(memory)
        blocks = {name: (after[name] - before[name]) / shape.rounds for name in after}
        memory.rewind(mark)
        reply = _reply_ms(engine, memory, shape)
    finally:
        memory.rewind(mark)
    refresh, recycled = times[::stride], [t for i, t in enumerate(times) if i % stride]
    codec = memory.config.codec
    return StepTimes(
        history, codec, compiled, stride, tuple(recycled), tuple(refresh), reply, blocks
    )


def steps_of(
    memories: list[SessionMemory], engine: Engine, shape: Shape
) -> Iterator[Callable[[], object]]:
    """Steps of all sessions together, for ever: one with a look-up, then recycled ones, up to
    `stride`."""
    at = 0
    while True:
        ids = random_ids(shape, len(memories), seed=at)
        span = ReadSpan(1, int(at % engine.config.stride == 0))
        feeds = [Feed(m, [i], [span], best=True) for m, i in zip(memories, ids, strict=True)]
        yield partial(engine.forward, feeds)
        at += 1


def _found(memory: SessionMemory) -> dict[str, int]:
    """Blocks of look-ups so far, by where they were found."""
    counts = [layer.tier.counts for layer in memory.full_layers]
    return {"device": sum(c.device for c in counts), "host": sum(c.host for c in counts)}


def _reply_ms(engine: Engine, memory: SessionMemory, shape: Shape) -> float:
    """Milliseconds per token of a greedy reply after its first, through the decoding loop; its
    closing counts as one more. The host has every token before the next step begins."""
    if engine.device.type == "cuda":
        _reply(engine, memory, shape, 2 * engine.config.stride)  # warms what steps alone did not
    started, ended, tokens = _reply(engine, memory, shape, shape.reply_tokens)
    return 1000 * (ended - started) / tokens


def _reply(
    engine: Engine, memory: SessionMemory, shape: Shape, tokens: int
) -> tuple[float, float, int]:
    """When the first token was there, when all was through, and how many tokens there were."""
    mark, ids = memory.mark(), random_ids(shape, _QUESTION_TOKENS, seed=7)
    decoding = Decoding(
        engine, memory, [Turn("user", "")], [Segment(ids, engine.spans(len(ids)))],
        Sampling(max_new_tokens=tokens, eos_token_id=()), Extensions(),
        new_generator(engine.device), [], lambda: False,
    )  # fmt: skip
    for _ in engine.scheduler.run(Strand(decoding.steps, whole=True)):
        pass
    if engine.device.type == "cuda":
        torch.cuda.synchronize(engine.device)
    ended = time.perf_counter()
    memory.rewind(mark)
    return decoding.first_token_at, ended, decoding.usage().generated
