"""What making one more exchange durable takes, by length of the history: time and bytes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from longmem.bench.chat_stream import Report, silent
from longmem.bench.footprint import FilesWritten, bytes_written
from longmem.bench.shelf import SESSION, Shelf, taken
from longmem.engine import Engine
from longmem.session import Session

REPLY_TOKENS = 20
"""Tokens of each reply, so that every exchange is equally long."""
QUESTION = "Did you see the rain this morning?"


@dataclass(frozen=True)
class CommitCost:
    """Commits at one length of the history; one figure per round.

    Args:
        history: tokens held at first.
        tokens: of each exchange.
        ms: from the last token of the reply until the exchange is durable.
        file_bytes: of the exchange's turn file.
        database_bytes: handed to write calls beside it: rows and log of the database; empty where the
            system does not count them.
    """

    history: int
    tokens: int
    ms: tuple[float, ...]
    file_bytes: tuple[int, ...]
    database_bytes: tuple[int, ...]

    @property
    def medians(self) -> dict[str, float | None]:
        """Per exchange: median of the rounds."""
        sides = {
            "ms": self.ms,
            "file_bytes": self.file_bytes,
            "database_bytes": self.database_bytes,
        }
        return {name: statistics.median(each) if each else None for name, each in sides.items()}


@dataclass(frozen=True)
class CommitRun:
    """Costs by length, shortest first."""

    costs: Sequence[CommitCost]

    def figures(self) -> dict[str, object]:
        """The figures as a JSON-able object."""
        first = self.costs[0].medians
        return {
            "rows": [{**asdict(cost), "median": cost.medians} for cost in self.costs],
            "to_shortest": [
                {name: _ratio(value, first[name]) for name, value in cost.medians.items()}
                for cost in self.costs
            ],
        }


def measure(
    engine: Engine,
    shelf: Shelf,
    lengths: Sequence[int],
    rounds: int = 31,
    report: Report = silent,
) -> CommitRun:
    """Commit one exchange after another, each length in turn.

    Args:
        shelf: holds a history of each of `lengths`.
    """
    from longmem.stores import SQLiteStore

    with ExitStack() as stack:
        seats = []
        for tokens in sorted(lengths):
            folder = stack.enter_context(taken(shelf, tokens))
            store = stack.enter_context(SQLiteStore(folder))
            session = stack.enter_context(engine.session(SESSION, store=store))
            files = FilesWritten(folder / "files")
            stack.callback(files.close)
            seats.append(_Seat(session, files))
        for seat in seats:
            seat.warm()
        for at in range(rounds):
            for seat in seats:
                seat.round()
            report(f"commit: round {at + 1} of {rounds}")
        return CommitRun([seat.cost() for seat in seats])


class _Seat:
    """One session, and what its rounds took."""

    def __init__(self, session: Session, files: FilesWritten) -> None:
        self._session, self._files = session, files
        self._ms: list[float] = []
        self._bytes: list[int] = []
        self._others: list[int] = []

    def warm(self) -> None:
        """One exchange that does not count."""
        self._ask()
        stats = self._session.stats()
        self._held = stats.tokens

    def round(self) -> None:
        """One exchange that does."""
        before, files = bytes_written(), len(self._files.sizes)
        self._ms.append(self._ask())
        new = self._files.sizes[files:]
        self._bytes.append(min(new))  # larger ones are merged files, which many exchanges share
        after = bytes_written()
        if before is not None and after is not None:
            self._others.append(after - before - sum(new))

    def cost(self) -> CommitCost:
        """All rounds."""
        tokens = (self._session.stats().tokens - self._held) // len(self._ms)
        return CommitCost(
            self._held, tokens, tuple(self._ms), tuple(self._bytes), tuple(self._others)
        )

    def _ask(self) -> float:
        reply = self._session.ask(QUESTION, max_new_tokens=REPLY_TOKENS, eos_token_id=())
        return reply.timings.commit * 1000


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
