"""Blocks on their way from the store, read by a few threads that all sessions share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Generic, TypeVar

Entry = TypeVar("Entry")
Read = Callable[[], list[Entry]]
"""Reads blocks from the store when it is called, in any thread."""

_THREADS = 4


class Ahead(Generic[Entry]):
    """Reads begun before their blocks are asked for. What is read does not depend on it.

    Args:
        room: most blocks under way or waiting to be taken.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._under_way: dict[int, tuple[Future[list[Entry]], int]] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._under_way

    def start(self, blocks: Sequence[int], reader: Callable[[Sequence[int]], Read[Entry]]) -> None:
        """Begin to read these blocks in another thread; those there is no room for are not read.

        Args:
            blocks: numbers of committed blocks.
            reader: gives what reads some of them; called here, what it gives in the other thread.
        """
        new = blocks[: self._room - len(self._under_way)]
        if not new:
            return
        future = _pool(os.getpid()).submit(reader(new))
        for i, block in enumerate(new):
            self._under_way[block] = future, i

    def take(self, block: int) -> Entry | None:
        """What was read of a block, waiting for it; None if nobody began to.

        Raises:
            Exception: what the read raised. A later read of the block begins anew.
        """
        if block not in self._under_way:
            return None
        future, i = self._under_way.pop(block)
        try:
            return future.result()[i]
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Forget all reads; those that no thread began are not made."""
        for future, _ in self._under_way.values():
            future.cancel()
        self._under_way.clear()


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """The threads of this process: a fork does not inherit its parent's."""
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="longmem-fetch")
