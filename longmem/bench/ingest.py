"""Tokens read per second by length of the history that lies before them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from longmem.bench.chat_stream import Report, Talk, silent
from longmem.bench.dense import Dense
from longmem.bench.shelf import Shelf, opened
from longmem.engine import Engine
from longmem.session import Session

TOKENS = 4096
"""Tokens of each measured part, read and committed at once."""


@dataclass(frozen=True)
class Rate:
    """Reading behind one length of the history.

    Args:
        history: tokens held when the first part is read; each part makes it longer.
        tokens_per_s: of each round.
    """

    history: int
    tokens_per_s: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.tokens_per_s)

    def row(self) -> dict[str, object]:
        """JSON-able."""
        return {**asdict(self), "median": self.median, "best": max(self.tokens_per_s)}


@dataclass(frozen=True)
class IngestRun:
    """Rates by length, shortest first; `dense` is transformers' prefill behind a cache of all tokens,
    and ends where that no longer fits."""

    longmem: Sequence[Rate]
    dense: Sequence[Rate]

    def figures(self) -> dict[str, object]:
        """The figures as a JSON-able object."""
        last = self.longmem[-1]
        return {
            "part_tokens": TOKENS,
            "longmem": [rate.row() for rate in self.longmem],
            "dense": [rate.row() for rate in self.dense],
            "longest_to_each": [last.median / rate.median for rate in self.longmem],
            "longmem_to_dense": [
                ours.median / theirs.median
                for ours, theirs in zip(self.longmem, self.dense, strict=False)
            ],
        }


def measure(
    engine: Engine,
    shelf: Shelf,
    lengths: Sequence[int],
    rounds: int = 3,
    dense_up_to: int = 128_000,
    report: Report = silent,
) -> IngestRun:
    """Read further parts of the conversation, time of the commit included.

    Args:
        shelf: holds a history of each of `lengths`.
        rounds: parts at each length; the lengths take turns.
        dense_up_to: longest history behind which transformers reads as well.
    """
    lengths, talk = sorted(lengths), Talk(engine, first_day=1_000_000)
    dense, passes = Dense(engine), engine.segment_tokens
    with opened(shelf, engine, lengths) as sessions:
        held = [session.stats().tokens for session in sessions.values()]
        full = [dense.history(sessions[n].stats().tokens) for n in lengths if n <= dense_up_to]
        sizes = [history.tokens for history in full]
        for session in sessions.values():
            session.add(talk.part(session, 256))  # the first pass after opening warms caches
        ours: list[list[float]] = [[] for _ in held]
        theirs: list[list[float]] = [[] for _ in full]
        for at in range(rounds):
            for session, rates in zip(sessions.values(), ours, strict=True):
                rates.append(_rate(session, talk))
            for history, rates in zip(full, theirs, strict=True):
                rates.append(TOKENS / history.read_seconds(TOKENS, passes))
            report(f"ingest: round {at + 1} of {rounds}")
    return IngestRun(
        [Rate(n, tuple(rates)) for n, rates in zip(held, ours, strict=True)],
        [Rate(n, tuple(rates)) for n, rates in zip(sizes, theirs, strict=True)],
    )


def _rate(session: Session, talk: Talk) -> float:
    turns = talk.part(session, TOKENS)
    started = time.perf_counter()
    read = session.add(turns)
    return sum(turn.tokens for turn in read) / (time.perf_counter() - started)
