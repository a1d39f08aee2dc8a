"""Time per reply token by length of the history: with recycled steps, with a look-up at every token,
and with the same model in transformers' own hands. All in one run, whose rounds take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from longmem.bench.chat_stream import Report, silent
from longmem.bench.dense import Dense, DenseHistory
from longmem.bench.recycled import every_step
from longmem.bench.shelf import Shelf, opened
from longmem.engine import Engine
from longmem.session import Session
from longmem.types import SessionStats

REPLY_TOKENS = 64
"""Tokens of each measured reply."""
DENSE_STEPS = 8
"""Steps of each round with all keys and values; the time of one varies little, and may be long."""
QUESTION = "How was your day?"


@dataclass(frozen=True)
class DecodeTime:
    """One way to decode at one length of the history.

    Args:
        history: tokens held.
        ms: per token, of each round.
        state_bytes: what decoding holds beside the model: on the device, and in host memory.
        index_bytes: of these, what the block index takes.
    """

    history: int
    ms: tuple[float, ...]
    state_bytes: int
    index_bytes: int = 0

    @property
    def ms_per_token(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.ms)

    def row(self) -> dict[str, object]:
        """JSON-able."""
        return {**asdict(self), "ms_per_token": self.ms_per_token, "ms_best": min(self.ms)}


@dataclass(frozen=True)
class DecodeRun:
    """Times by length, shortest first; `dense` ends where it no longer fits.

    Args:
        recycled: the engine's own settings.
        every: the same memory with a look-up at every token.
        dense: transformers' `DynamicCache` with SDPA, all tokens attended.
    """

    recycled: Sequence[DecodeTime]
    every: Sequence[DecodeTime]
    dense: Sequence[DecodeTime]

    def figures(self) -> dict[str, object]:
        """The figures as a JSON-able object."""
        sides = {"recycled": self.recycled, "every_token": self.every, "dense": self.dense}
        pairs = list(zip(self.recycled, self.dense, strict=False))
        return {
            **{name: [time.row() for time in side] for name, side in sides.items()},
            "longest_to_shortest": {name: _growth(side) for name, side in sides.items()},
            "longest_to_shortest_best": {
                name: _growth(side, _best) for name, side in sides.items()
            },
            "every_token_to_recycled": [
                e.ms_per_token / r.ms_per_token
                for r, e in zip(self.recycled, self.every, strict=True)
            ],
            "dense_to_recycled": [d.ms_per_token / r.ms_per_token for r, d in pairs],
            "state_to_dense": [r.state_bytes / d.state_bytes for r, d in pairs],
        }


def measure(
    engine: Engine,
    shelf: Shelf,
    lengths: Sequence[int],
    rounds: int = 7,
    dense_up_to: int = 128_000,
    report: Report = silent,
) -> DecodeRun:
    """Decode replies that nothing remembers, over stored histories.

    Args:
        shelf: holds a history of each of `lengths`.
        rounds: replies at each length; lengths and sides take turns within each.
        dense_up_to: longest history that is also decoded with all keys and values.
    """
    lengths = sorted(lengths)
    every = Engine(engine.model, engine.tokenizer, every_step(engine.config), engine.segment_tokens)
    with opened(shelf, engine, lengths) as recycled, opened(shelf, every, lengths) as refreshed:
        dense = Dense(engine)
        full = {n: dense.history(recycled[n].stats().tokens) for n in lengths if n <= dense_up_to}
        sizes = [history.tokens for history in full.values()]
        sides: list[Session | DenseHistory] = [*recycled.values(), *refreshed.values()]
        sides += full.values()
        for side in sides:
            _ms(side)  # the first reply after opening reads blocks and warms caches
        times: list[list[float]] = [[] for _ in sides]
        for at in range(rounds):
            for side, found in zip(sides, times, strict=True):
                found.append(_ms(side))
            report(f"decode: round {at + 1} of {rounds}")
        ms = iter(times)
        return DecodeRun(
            [_of_session(session.stats(), next(ms)) for session in recycled.values()],
            [_of_session(session.stats(), next(ms)) for session in refreshed.values()],
            [DecodeTime(size, tuple(next(ms)), dense.bytes_at(size)) for size in sizes],
        )


def _ms(side: Session | DenseHistory) -> float:
    """Milliseconds per token after the first."""
    if isinstance(side, DenseHistory):
        return side.decode_ms(DENSE_STEPS)
    reply = side.ask(QUESTION, commit=False, max_new_tokens=REPLY_TOKENS, eos_token_id=())
    return reply.timings.decode * 1000 / (reply.usage.generated - 1)


def _of_session(stats: SessionStats, ms: list[float]) -> DecodeTime:
    held = stats.bytes_device + stats.bytes_host
    return DecodeTime(stats.tokens, tuple(ms), held, getattr(stats, "bytes_index", 0))


def _best(time: DecodeTime) -> float:
    return min(time.ms)


def _median(time: DecodeTime) -> float:
    return time.ms_per_token


def _growth(
    side: Sequence[DecodeTime], of: Callable[[DecodeTime], float] = _median
) -> float | None:
    return of(side[-1]) / of(side[0]) if len(side) > 1 else None
