"""Has the files of sessions merged in the background, while the sessions are in use.

One thread per process does the work of all sessions and ends when there is none. It loses nothing
when the process ends: a merge is as safe as a commit, and closing a session breaks its merge off.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from longmem.errors import LongMemError, SessionClosedError, StaleWriterError
from longmem.memory import SessionMemory
from longmem.store import SessionHandle

MERGE_EVERY = 1 << 24
"""K/V bytes of closed blocks that have to gather before a session asks for a merge."""

_log = logging.getLogger(__name__)


class Background:
    """Runs jobs one after another in a thread that lives while there are any."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def put(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, behind those that wait."""
        with self._lock:
            self._jobs.append(job)
            if (
                self._thread is None or not self._thread.is_alive()
            ):  # none, or left behind by a fork
                self._thread = threading.Thread(
                    target=self._work, name="longmem-merge", daemon=True
                )
                try:
                    self._thread.start()
                except RuntimeError:  # too many threads: the exchange is committed, files can wait
                    self._thread = None

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._thread = None
                    return
                job = self._jobs.popleft()
            job()


_background = Background()


class Merging:
    """Asks for merges of one session's files.

    Args:
        handle: the session; None for one that lives in memory only.
    """

    def __init__(self, handle: SessionHandle | None) -> None:
        self._handle = handle
        self._asked = 0
        self._failed = False
        self._lock = threading.Lock()
        self._over = False

    def committed(self, memory: SessionMemory) -> None:
        """What `memory` has read is committed: have it merged if enough has gathered."""
        if self._handle is None:
            return
        info, upto = self._handle.info, final_tokens(memory)
        size = getattr(torch, info.dtype).itemsize
        row = sum(2 * heads * dim for heads, dim in info.layout) * size
        if (upto - self._asked) * row < MERGE_EVERY:
            return
        self._asked = upto
        drop_kv, keep = may_drop_kv(memory), memory.table.n_init
        _background.put(lambda: self._merge(info.id, upto, drop_kv, keep))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, nothing is merged, and if the block goes through nothing is from here on: after it
        the session ends elsewhere, and what left the window then may stand in it again."""
        with self._lock:
            yield
            self._over = True

    def _merge(self, session: str, upto: int, drop_kv: bool, keep: int) -> None:
        """Merge all there is; a session that cannot be merged goes on as it is."""
        try:
            while self._merge_once(upto, drop_kv, keep):
                self._failed = False
        except (SessionClosedError, StaleWriterError):
            return  # nobody needs it any more
        except LongMemError as error:
            if not self._failed:
                _log.warning("files of session %r were not merged: %s", session, error)
            self._failed = True
        except Exception:
            _log.exception("files of session %r were not merged", session)

    def _merge_once(self, upto: int, drop_kv: bool, keep: int) -> bool:
        assert self._handle is not None
        if not self._lock.acquire(blocking=False):
            return (
                False  # its past is being changed; other sessions' merges shall not wait for that
            )
        try:
            return not self._over and self._handle.merge(upto, drop_kv=drop_kv, keep=keep)
        finally:
            self._lock.release()


def final_tokens(memory: SessionMemory) -> int:
    """Position before which every token has left all windows, and has its final values where it is in
    a closed block: K/V from there on is read again when the session is resumed."""
    left = min((layer.local.first for layer in memory.layers), default=0)
    settled = min((max(layer.tier.settled, 0) for layer in memory.full_layers), default=None)
    return left if settled is None else min(left, memory.table.edges[settled])


def may_drop_kv(memory: SessionMemory) -> bool:
    """Whether closed blocks are kept under a codec, and nothing is made from their exact values when
    the session is resumed."""
    derived = any(layer.role.indexed and layer.lookup.derived for layer in memory.full_layers)
    return memory.config.codec != "exact" and memory.config.compressive is None and not derived
