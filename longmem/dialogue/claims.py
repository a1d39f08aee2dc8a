"""Who is writing what: one exchange at a time per session, and per request that is sent twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from longmem.errors import SessionInUseError
from longmem.session_pool import SessionPool


class Claims:
    """Names that are taken for a while; who comes too late is refused at once, nobody waits."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def take(self, name: str, refusal: str) -> Iterator[None]:
        """Hold `name` alone inside the block.

        Raises:
            SessionInUseError: with the text `refusal`: somebody holds it.
        """
        with self._lock:
            if self._held[name]:
                raise SessionInUseError(refusal)
            self._held[name] += 1
        with self._giving_back(name):
            yield

    @contextmanager
    def share(self, name: str) -> Iterator[None]:
        """Hold `name` inside the block, as others may, too; `take` is refused meanwhile."""
        with self._lock:
            self._held[name] += 1
        with self._giving_back(name):
            yield

    @contextmanager
    def _giving_back(self, name: str) -> Iterator[None]:
        try:
            yield
        finally:
            with self._lock:
                self._held -= Counter([name])  # leaves out what nobody holds


_OF_POOLS: WeakKeyDictionary[SessionPool, Claims] = WeakKeyDictionary()
_LOCK = threading.Lock()


def claims_of(pool: SessionPool) -> Claims:
    """The claims that all dialogues over one pool share."""
    with _LOCK:
        return _OF_POOLS.setdefault(pool, Claims())
