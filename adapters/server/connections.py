"""Connections on which nothing is asked: they cost a client nothing, and the server a file each."""

from __future__ import annotations

import sys
from collections.abc import Set
from typing import Any
from weakref import WeakKeyDictionary

_SHARE = 0.5
"""Of the files a process may open; the store needs the others."""
_FEWEST, _MOST = 16, 8192
_EVERY = 0.5
"""Seconds between two looks."""


def most_connections() -> int:
    """Connections for which the process has files to spare."""
    if sys.platform == "win32":
        return _MOST
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = _MOST if files == resource.RLIM_INFINITY else int(files * _SHARE)
    return min(_MOST, max(_FEWEST, allowed))


class Connections:
    """Cuts connections whose request does not begin; uvicorn waits for headers without an end.

    Args:
        connections: uvicorn's, of every protocol it speaks HTTP with: `cycle` is the latest request.
        seconds: in which the headers of a request have to be there.
        most: connections there may be. Where there are more, those go that have waited longest for a
            request; requests under way stay.
    """

    def __init__(self, connections: Set[Any], seconds: float, most: int) -> None:
        self._connections, self._seconds, self._most = connections, seconds, most
        self._next_look = 0.0
        self._since: WeakKeyDictionary[Any, tuple[int, float]] = WeakKeyDictionary()

    def check(self, now: float) -> None:
        """Look at all of them, if it is time to.

        Args:
            now: of `time.monotonic`.
        """
        if now < self._next_look:
            return
        self._next_look = now + _EVERY
        waiting = sorted(
            (self._waits_since(each, now), i, each)
            for i, each in enumerate(self._connections)
            if _waits(each)
        )
        too_many = len(self._connections) - self._most
        for i, (since, _, each) in enumerate(waiting):
            if i < too_many or now - since > self._seconds:
                each.transport.abort()

    def _waits_since(self, connection: Any, now: float) -> float:
        latest = id(connection.cycle)  # another one: there was a request meanwhile
        if self._since.get(connection, (0, 0.0))[0] != latest:
            self._since[connection] = (latest, now)
        return self._since[connection][1]


def _waits(connection: Any) -> bool:
    """Whether no request is under way."""
    return connection.cycle is None or connection.cycle.response_complete
