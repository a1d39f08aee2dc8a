"""What a `SQLiteStore` holds while it is open: folder, database, writer lock, and its handles."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

from longmem.errors import (
    InputError,
    SessionInUseError,
    SessionNotFoundError,
    StoreReadOnlyError,
)
from longmem.store import SessionHandle
from longmem.stores.claim import Claim
from longmem.stores.database import Database
from longmem.stores.folder import Folder
from longmem.stores.handle import SQLiteHandle
from longmem.stores.lock import WriterLock
from longmem.stores.quota import Limits
from longmem.stores.removal import recover, remove_session, work_off_queue
from longmem.stores.rows import find_session, is_published
from longmem.stores.scrubbing import make_up_for_scrub, owe_scrub
from longmem.stores.trimming import trim_if_possible


class OpenedStore:
    """The lower half of `longmem.stores.sqlite.SQLiteStore`, whose arguments these are."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool,
        limits: Limits,
        merge_bytes: int | None,
    ) -> None:
        self.path = Path(path).expanduser().absolute()
        self.read_only = read_only
        self._limits = limits
        self._merge_bytes = merge_bytes
        self._guard = threading.RLock()
        self._claimed: WeakValueDictionary[str, SQLiteHandle] = WeakValueDictionary()
        self._staged: set[SQLiteHandle] = set()
        self._folder = Folder(self.path, create=not read_only)
        self._writer = None if read_only else WriterLock(self.path / "lock")
        try:
            self._database = Database(
                self._folder.database,
                read_only=read_only,
                before_creation=self._folder.refuse_if_used,
            )
            with self._database.transaction() as rows:
                found = rows.execute("SELECT value FROM meta WHERE name = 'store'").fetchone()
            self._store_id: str = found["value"]
            if not read_only:
                recover(self._database, self._folder, self._store_id)
                make_up_for_scrub(self._database, self._folder, self._store_id)
                self._database.truncate_log()
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Release locks and connections. Closing twice is fine."""
        with self._guard:
            try:
                for handle in [*self._staged, *self._claimed.values()]:
                    handle.close()
            finally:
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _handle(self, claim: Claim) -> SQLiteHandle:
        place = (self._database, self._folder, self._store_id)
        verbs = (self._forget, self._tidy)
        return SQLiteHandle(*place, claim, *verbs, self._limits, self._merge_bytes)

    def _forget(self, handle: SQLiteHandle) -> None:
        """A handle closes: its claim ends; a stand-in nobody published goes."""
        with self._guard:
            claim = handle.release()
            if claim is None:
                return
            if self._claimed.get(claim.info.id) is handle:
                del self._claimed[claim.info.id]
            if handle not in self._staged:
                return
            self._staged.discard(handle)
            with self._database.transaction() as rows:
                if not is_published(rows, claim.key):
                    remove_session(rows, claim.key)
            self._tidy()

    def _delete(self, session_id: str, *, scrubbed: bool = False) -> None:
        """Delete a session that is not open, and note that the store has to be `scrubbed` for it."""
        self._writable()
        with self._guard:
            self._unclaimed(session_id)
            with self._database.transaction() as rows:
                remove_session(rows, self._found(rows, session_id)["key"])
                staged = "SELECT key FROM sessions WHERE staged_for = ?"  # it goes as well
                for row in rows.execute(staged, (session_id,)).fetchall():
                    remove_session(rows, row["key"])
                rows.execute("DELETE FROM records WHERE session = ?", (session_id,))
                if scrubbed:
                    owe_scrub(rows)
            self._tidy()

    def _tidy(self) -> None:
        """Bring the files in line with the rows; deleted text leaves the write-ahead log too."""
        with self._guard:
            trim_if_possible(self._database, self._folder, self._store_id, self._refresh)
            work_off_queue(self._database, self._folder)
            self._database.truncate_log()

    def _refresh(self) -> None:
        """Let every handle name the files its session now has."""
        for handle in [*self._staged, *self._claimed.values()]:
            handle.refresh()

    def _own(self, handle: SessionHandle) -> SQLiteHandle:
        if not isinstance(handle, SQLiteHandle) or handle.database is not self._database:
            raise InputError("the handle belongs to another store")
        return handle

    def _found(self, rows: sqlite3.Connection, session_id: str) -> sqlite3.Row:
        row = find_session(rows, session_id)
        if row is None:
            raise SessionNotFoundError(f"the store {self.path} has no session {session_id!r}")
        return row

    def _unclaimed(self, session_id: str) -> None:
        if session_id in self._claimed:
            raise SessionInUseError(
                f"session {session_id!r} is open in this process; close it first"
            )

    def _writable(self) -> None:
        if self.read_only:
            raise StoreReadOnlyError(
                f"the store {self.path} is open read-only; nothing was written"
            )

    def _release(self) -> None:
        if hasattr(self, "_database"):
            self._database.close()
        self._folder.close()
        if self._writer is not None:
            self._writer.release()
