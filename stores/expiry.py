"""Sessions that may go: `ttl` seconds after their last commit, once somebody sweeps."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Container
from contextlib import AbstractContextManager

from longmem.errors import ConfigError
from longmem.stores.database import Database
from longmem.stores.quota import check_limit

_LOG = logging.getLogger("longmem.stores")


def delete_expired(
    database: Database,
    guard: AbstractContextManager[object],
    claimed: Container[str],
    delete: Callable[[str], None],
    now: float | None,
) -> list[str]:
    """Delete what has expired and is not claimed; returns the ids, the longest over first.

    Args:
        guard: held while a session is judged and deleted, so that nobody opens it in between.
        now: Unix seconds; None: the present.
    """
    moment, gone = time.time() if now is None else now, []
    for session_id in _expired(database, moment):
        with guard:
            if session_id not in claimed and _expired(database, moment, session_id):
                delete(session_id)
                gone.append(session_id)
    return gone


def check_sweeping(every: float | None, read_only: bool) -> None:
    """Refuse a background sweep that cannot work.

    Raises:
        ConfigError: `every` is not positive, or the store is read-only.
    """
    check_limit("sweep_every", every)
    if every is not None and read_only:
        raise ConfigError("a read-only store deletes nothing; leave sweep_every out")


class Sweeper:
    """A daemon thread that sweeps a store at once and then every so often, until it is stopped.

    It does not keep the store alive. An error is logged when it comes up, not again while it lasts.

    Args:
        sweep: the store's bound `sweep`.
        every: seconds between two sweeps; None: there is no thread.
    """

    def __init__(self, sweep: Callable[[], list[str]], every: float | None) -> None:
        self._stopped = stopped = threading.Event()
        self._sweep = weakref.WeakMethod(sweep, lambda _: stopped.set())
        self._every = every
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="longmem-sweeper", daemon=True)
        if every is not None:
            self._thread.start()

    def stop(self) -> None:
        """Let a sweep under way end, and no other begin. The caller holds none of the store's locks."""
        self._stopped.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set() and self._sweep_once():
            self._stopped.wait(self._every)

    def _sweep_once(self) -> bool:
        """False when the store is gone."""
        sweep = self._sweep()
        if sweep is None:
            return False
        try:
            sweep()
            self._failing = False
        except Exception as error:  # whatever it is, the next sweep may get through
            if not self._failing:
                _LOG.error("expired sessions could not be deleted, trying again later: %s", error)
            self._failing = True
        return True


def _expired(database: Database, now: float, session_id: str | None = None) -> list[str]:
    """Ids of the sessions, or of that one, whose time is over."""
    with database.transaction() as rows:
        found = rows.execute(
            """SELECT id FROM sessions WHERE ttl IS NOT NULL AND updated_at + ttl <= :now
               AND staged_for IS NULL AND (:id IS NULL OR id = :id) ORDER BY updated_at + ttl""",
            {"now": now, "id": session_id},
        ).fetchall()
    return [row["id"] for row in found]
