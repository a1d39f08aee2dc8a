"""Shelves that are being formed in another thread while blocks go on to close."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from longmem.memory.shelf import Shelf
from longmem.memory.shelf_plan import Place


class Forming:
    """What is under way, by place. What comes of it does not depend on when it is done."""

    def __init__(self) -> None:
        self._under_way: dict[Place, Future[Shelf]] = {}

    def __contains__(self, place: Place) -> bool:
        return place in self._under_way

    def start(self, place: Place, work: Callable[[], Shelf]) -> None:
        """Begin to form a shelf; `work` runs in another thread."""
        self._under_way[place] = _pool(os.getpid()).submit(work)

    def take(self, place: Place) -> Shelf:
        """The shelf, waiting for it.

        Raises:
            Exception: what forming it raised.
        """
        return self._under_way.pop(place).result()

    def keep(self, wanted: Callable[[Place], bool]) -> None:
        """Forget all others."""
        for place in [p for p in self._under_way if not wanted(p)]:
            self._under_way.pop(place).cancel()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One thread for all sessions of this process: a fork does not inherit its parent's."""
    return ThreadPoolExecutor(1, thread_name_prefix="longmem-index")
