"""The turns of a session: in the store, or in a list for sessions without one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from longmem.store import TurnRecord
from longmem.types import Turn


class History(Protocol):
    """Read access to committed turns; `longmem.store.SessionHandle` has it too."""

    def turns(self, start: int = 0, stop: int | None = None) -> list[TurnRecord]:
        """Turns ``start <= index < stop``, in order."""

    def turns_at(self, positions: Sequence[int]) -> list[TurnRecord]:
        """For each token position the turn that holds it."""


class ListHistory:
    """The turns of a session without a store."""

    def __init__(self) -> None:
        self._turns: list[TurnRecord] = []
        self._starts: list[int] = []

    def extend(self, turns: Sequence[TurnRecord]) -> None:
        """Add new turns at the end."""
        self._turns.extend(turns)
        self._starts.extend(turn.start for turn in turns)

    def turns(self, start: int = 0, stop: int | None = None) -> list[TurnRecord]:
        """As `History.turns`."""
        return self._turns[start:stop]

    def turns_at(self, positions: Sequence[int]) -> list[TurnRecord]:
        """As `History.turns_at`."""
        return [self._turns[bisect_right(self._starts, p) - 1] for p in positions]


def as_turn(record: TurnRecord) -> Turn:
    """What users see of a stored turn."""
    return Turn(
        record.role, record.text, record.index, len(record.ids), record.created_at, record.extra
    )
