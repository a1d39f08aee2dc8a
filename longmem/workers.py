"""Threads in which asyncio programs wait for sessions."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

MOST = 1024
"""Threads at most. A reply that is waited for as a whole keeps one until it is there, and one that is
streamed until its next piece: were there fewer than replies under way, the rest would wait for whole
replies of others before a token of theirs is read. They are started when none is free, and one that
waits costs some ten KiB."""


class Workers:
    """Runs blocking calls of an engine's sessions; threads are started at need and kept."""

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    async def run(self, call: Callable[[], T]) -> T:
        """`call` in a worker thread, with the context of the task that asks."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(
            self._threads(), lambda: context.run(call)
        )

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = ThreadPoolExecutor(MOST, thread_name_prefix="longmem")
            return self._executor
