"""Requests under way: one that is sent again meanwhile is not answered twice, and a conversation is
written by one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from longmem.adapters.server.errors import AGAIN, ApiError

if TYPE_CHECKING:
    from longmem.dialogue import Dialogue


class Flight:
    """One request under way. It ends with `land`, at the latest when nobody holds it any more.

    Args:
        names: what it holds.
        flights: all flights.
    """

    def __init__(self, names: Sequence[str], flights: WeakSet[Flight]) -> None:
        self.names, self._flights = frozenset(names), flights
        flights.add(self)

    def land(self) -> None:
        """The request is over."""
        self._flights.discard(self)


class Flights:
    """All requests under way; may be used from any thread."""

    def __init__(self) -> None:
        self._flights: WeakSet[Flight] = WeakSet()
        self._lock = threading.Lock()

    def take(self, names: Sequence[str], refusals: Mapping[str, ApiError]) -> Flight:
        """A request begins.

        Args:
            names: what it holds until it lands; others may hold the same.
            refusals: names that nobody else may hold, and what the client is told if somebody does.

        Raises:
            ApiError: one of the refusals.
        """
        with self._lock:
            for name, refusal in refusals.items():
                if any(name in flight.names for flight in self._flights):
                    raise refusal
            return Flight(names, self._flights)

    @contextmanager
    def conversation(self, owner: str | None, id: str) -> Iterator[None]:
        """Inside the block nobody else writes the conversation.

        Raises:
            ApiError: 409, somebody does.
        """
        name = conversation_name(owner, id)
        flight = self.take([name], {name: conversation_busy(id)})
        try:
            yield
        finally:
            flight.land()


def conversation_name(owner: str | None, id: str) -> str:
    """What a request holds that writes a conversation."""
    return f"conversation/{owner or ''}/{id}"


def conversation_busy(id: str) -> ApiError:
    """Another request is writing the conversation."""
    message = f"conversation {id!r} is in the middle of a response; come again when it is over"
    return ApiError(409, "session_in_use", message, headers=AGAIN)


def request_busy() -> ApiError:
    """The request that this one repeats is under way."""
    message = "the request that this one repeats is under way; come again for its response"
    return ApiError(409, "request_in_progress", message, headers=AGAIN)


_OF_DIALOGUES: WeakKeyDictionary[Dialogue, Flights] = WeakKeyDictionary()


def flights_of(dialogue: Dialogue) -> Flights:
    """The flights that all routes over one dialogue share."""
    return _OF_DIALOGUES.setdefault(dialogue, Flights())
