"""The committed turns of a session as the messages they are, with their chain values."""

from __future__ import annotations

from typing import Protocol

from longmem.dialogue.chain import START, chained, linked
from longmem.dialogue.message import Message, turn_message
from longmem.types import Turn

_CHUNK = 64
"""Turns read at once where none carries a chain value."""


class Turns(Protocol):
    """What is asked of a session."""

    @property
    def n_turns(self) -> int:
        """Committed turns."""

    def turns(self, start: int = 0, stop: int | None = None) -> list[Turn]:
        """Committed turns ``start <= index < stop``."""

    def boundary(self, turn: int) -> int:
        """The largest index <= `turn` of a turn that ends a commit; -1: there is none."""


class Past:
    """Messages 0 .. n-1 of a session; its system prompt, pinned as turn 0, is none of them.

    Args:
        session: whose turns they are; nothing is cached beyond this object's life.
    """

    def __init__(self, session: Turns) -> None:
        self._session = session
        self._turns: dict[int, Turn] = {}
        self._values: dict[int, bytes] = {0: START}
        first = self._turn(0) if session.n_turns else None
        self.system = first if first is not None and first.role == "system" else None
        """Turn 0, if it is a system prompt."""
        self.offset = 1 if self.system is not None else 0
        """Index of message 0's turn."""
        self.n = session.n_turns - self.offset

    def messages(self, start: int, stop: int) -> list[Message]:
        """Messages ``start <= i < stop``."""
        wanted = range(max(start, 0), min(stop, self.n))
        self._load(wanted.start, wanted.stop)
        return [turn_message(self._turns[self.offset + i]) for i in wanted]

    def message(self, i: int) -> Message:
        """Message i."""
        return turn_message(self._turn(self.offset + i))

    def last_turn(self) -> Turn:
        """The turn of the last message."""
        return self._turn(self.offset + self.n - 1)

    def chain(self, count: int) -> bytes:
        """The chain value of the first `count` messages."""
        if count not in self._values:
            self._values[count] = self._chain(count)
        return self._values[count]

    def boundary(self, count: int) -> int:
        """The most messages, at most `count`, that end with a commit; -1: not even the system prompt
        alone was one."""
        last = self.offset + count - 1
        return count if last < 0 else self._session.boundary(last) + 1 - self.offset

    def _chain(self, count: int) -> bytes:
        """What the turn carries; or from the last turn before it that carries one."""
        start, value = count, linked(self._turn(self.offset + count - 1), count)
        while value is None:
            start -= 1
            value = self._values.get(start) or self._carried(start, count)
        for i in range(start, count):
            value = chained(value, self.message(i))
            self._values[i + 1] = value
        return value

    def _carried(self, count: int, before: int) -> bytes | None:
        if self.offset + count - 1 not in self._turns:
            self._load(max(0, count - _CHUNK), count)
        return linked(self._turn(self.offset + count - 1), count)

    def _turn(self, index: int) -> Turn:
        if index not in self._turns:
            self._turns[index] = self._session.turns(index, index + 1)[0]
        return self._turns[index]

    def _load(self, start: int, stop: int) -> None:
        missing = [
            i for i in range(self.offset + start, self.offset + stop) if i not in self._turns
        ]
        if missing:
            for turn in self._session.turns(missing[0], missing[-1] + 1):
                self._turns[turn.index] = turn
