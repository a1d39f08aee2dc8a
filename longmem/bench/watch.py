"""What a benchmark tells whoever waits for it."""

from __future__ import annotations

from typing import Protocol


class Watch(Protocol):
    """Hears how far a run is; `longmem bench` draws a progress bar from it."""

    def begin(self, what: str, total: int) -> None:
        """A session starts to read `total` tokens."""

    def read(self, tokens: int) -> None:
        """It has read so many."""

    def asked(self, done: int, total: int) -> None:
        """It has answered `done` of `total` questions."""


class Unwatched:
    """A `Watch` that nobody looks at."""

    def begin(self, what: str, total: int) -> None:
        """As `Watch.begin`."""

    def read(self, tokens: int) -> None:
        """As `Watch.read`."""

    def asked(self, done: int, total: int) -> None:
        """As `Watch.asked`."""
