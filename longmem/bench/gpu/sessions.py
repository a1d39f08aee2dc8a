"""Tokens per second of many sessions whose steps are packed into one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import median

import torch

from longmem.bench.chat_stream import Report, silent
from longmem.bench.gpu.budget import Budget
from longmem.bench.gpu.clock import each_ms
from longmem.bench.gpu.decode import steps_of
from longmem.bench.gpu.history import History
from longmem.bench.gpu.model import engine_with
from longmem.bench.gpu.shapes import Shape
from longmem.engine import Engine
from longmem.memory import SessionMemory

_STEPS_S = 10.0
"""Seconds that one number of sessions is expected to take."""
_FIRST_READ_S = 4.0
"""Seconds that the first history is expected to take."""


@dataclass(frozen=True)
class SessionsTime:
    """So many sessions at once.

    Args:
        sessions: how many.
        history: tokens of each.
        stride: steps under one look-up.
        recycled_ms, refresh_ms: of each step of all of them together.
    """

    sessions: int
    history: int
    stride: int
    recycled_ms: tuple[float, ...]
    refresh_ms: tuple[float, ...]

    @property
    def recycled_rate(self) -> float:
        """Tokens per second of recycled steps."""
        return 1000 * self.sessions / median(self.recycled_ms)

    @property
    def rate(self) -> float:
        """Tokens per second with one look-up every `stride` steps, of all at the same step."""
        recycled, refresh = median(self.recycled_ms), median(self.refresh_ms)
        return 1000 * self.sessions * self.stride / (refresh + (self.stride - 1) * recycled)

    def row(self) -> dict[str, object]:
        """JSON-able."""
        rates = {"recycled": self.recycled_rate, "with_refreshes": self.rate}
        return {**asdict(self), "tokens_per_s": rates}


_SLOTS = 2**29
"""Bytes of block slots per session: all blocks of the 8B shape after 8K tokens."""


def measure_sessions(
    engine: Engine,
    shape: Shape,
    numbers: Sequence[int],
    budget: Budget,
    report: Report = silent,
) -> Iterator[SessionsTime]:
    """Times by number of sessions, fewest first, as far as time and device memory go.

    Each session reads a history of its own, and keeps as many blocks on the device as it has then.
    """
    config = engine.config.replace(device_bytes=_SLOTS)
    packed = engine_with(engine, config)
    memories: list[SessionMemory] = []
    each_s = _FIRST_READ_S if engine.device.type == "cuda" else 0.0
    for number in sorted(numbers):
        new = number - len(memories)
        if not budget.allows(f"{number} sessions", new * each_s + _STEPS_S * (each_s > 0)):
            return
        try:
            started = budget.spent
            memories += [_read(packed, shape, len(memories) + i) for i in range(new)]
            each_s = (budget.spent - started) / max(new, 1) if each_s else 0.0
            found = _measured(packed, shape, memories)
        except torch.OutOfMemoryError as error:
            budget.leave_out(f"{number} sessions", f"device memory: {str(error).splitlines()[0]}")
            return
        report(f"{number} sessions: {found.recycled_rate:,.0f} tokens/s")
        yield found


def _read(engine: Engine, shape: Shape, seed: int) -> SessionMemory:
    history = History(engine, shape, seed=1000 * (seed + 1))
    for _ in history.read_to(shape.session_history):
        pass
    return history.memory


def _measured(engine: Engine, shape: Shape, memories: list[SessionMemory]) -> SessionsTime:
    stride, marks = engine.config.stride, [memory.mark() for memory in memories]
    history = memories[0].n_tokens
    try:
        steps = steps_of(memories, engine, shape)
        each_ms([next(steps) for _ in range(2 * stride)], engine.device)
        times = each_ms((next(steps) for _ in range(shape.rounds * stride)), engine.device)
    finally:
        for memory, mark in zip(memories, marks, strict=True):
            memory.rewind(mark)
    recycled = tuple(ms for at, ms in enumerate(times) if at % stride)
    return SessionsTime(len(memories), history, stride, recycled, tuple(times[::stride]))
