"""The default store: a directory with one SQLite database and immutable turn files.

longmem.db    sessions, turns, commits, records, and the checksums of all files
files/        safetensors: one file per commit, and those that small ones were merged into
tmp/          files being written; emptied when a writer opens the store
lock          held by the one writing process; names its pid
"""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import replace
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
from longmem.store import Problem, SessionHandle, SessionInfo
from longmem.stores.checks import check_id
from longmem.stores.claim import Claim, check_lease
from longmem.stores.database import Database
from longmem.stores.expiry import Sweeper, check_sweeping, delete_expired
from longmem.stores.files import Files, load_files
from longmem.stores.folder import Folder
from longmem.stores.handle import SQLiteHandle
from longmem.stores.lock import WriterLock
from longmem.stores.merging import MERGE_BYTES
from longmem.stores.quota import Limits
from longmem.stores.records import SQLiteRecords
from longmem.stores.removal import recover, remove_session, work_off_queue
from longmem.stores.rows import find_session, insert_session, is_published, session_of
from longmem.stores.usage import charge
from longmem.stores.verify import verify


class SQLiteStore:
    """`longmem.store.Store` in a directory; safe to use from several threads.

    Args:
        path: the directory; created with mode 0700 if it is not there.
        read_only: open without the writer lock, also beside a live writer. Writes raise.
        max_bytes, max_owner_bytes: see `longmem.stores.quota.Limits`.
        merge_bytes: K/V bytes of the files that small ones are merged into; None: they stay.
        sweep_every: seconds between two calls of `sweep` in a thread of its own; None: no thread.

    Raises:
        StoreLockedError: another process writes to it.
        StoreFormatError: `path` is no store, or one of a newer longmem.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        max_bytes: int | None = None,
        max_owner_bytes: int | None = None,
        sweep_every: float | None = None,
        merge_bytes: int | None = MERGE_BYTES,
    ) -> None:
        self._limits = Limits(max_bytes, max_owner_bytes)
        check_sweeping(sweep_every, read_only)
        self.path = Path(path).expanduser().absolute()
        self.read_only = read_only
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
                recover(self._database, self._folder)
                self._database.truncate_log()
        except BaseException:
            self._release()
            raise
        self._sweeper = Sweeper(self.sweep, sweep_every)

    @property
    def records(self) -> SQLiteRecords:
        """Namespaced JSON documents."""
        return SQLiteRecords(self._database)

    def create(self, info: SessionInfo) -> SessionHandle:
        """Create and claim a session that is not there yet."""
        self._writable()
        check_id(info.id)
        fresh = replace(info, head=0, n_turns=0, n_tokens=0, bytes=0, charged=0)
        with self._guard:
            self._unclaimed(info.id)
            with self._database.transaction() as rows:
                if find_session(rows, info.id) is not None:
                    raise SessionInUseError(f"session {info.id!r} exists already; open it")
                key = insert_session(rows, fresh)
                fresh = charge(rows, key, fresh, self._limits)
            handle = self._handle(Claim(key, 1, fresh, Files()))
            self._claimed[info.id] = handle
            return handle

    def open(self, session_id: str) -> SessionHandle:
        """Claim an existing session for writing (or reading, on a read-only store)."""
        with self._guard:
            self._unclaimed(session_id)
            with self._database.transaction() as rows:
                row = self._found(rows, session_id)
                epoch = row["lease_epoch"] + 1
                if not self.read_only:
                    rows.execute(
                        "UPDATE sessions SET lease_epoch = ? WHERE key = ?", (epoch, row["key"])
                    )
                info = session_of(row)
                files = load_files(rows, row["key"], info.head, self._store_id)
            handle = self._handle(Claim(row["key"], epoch, info, files))
            self._claimed[session_id] = handle
            return handle

    def sessions(self, owner: str | None = None) -> list[SessionInfo]:
        """All sessions (of one owner), the most recently used first."""
        of_owner = "" if owner is None else "AND owner = :owner"
        with self._database.transaction() as rows:
            found = rows.execute(
                f"""SELECT * FROM sessions WHERE staged_for IS NULL {of_owner}
                    ORDER BY updated_at DESC, key DESC""",
                {} if owner is None else {"owner": owner},
            ).fetchall()
        return [session_of(row) for row in found]

    def stage(self, handle: SessionHandle, info: SessionInfo) -> SessionHandle:
        """A hidden, empty stand-in for a claimed session, to be rebuilt under a new `info`.

        It goes by the session's id whatever `info` says, and is dropped when it is closed or the
        store is opened anew before `publish`.
        """
        self._writable()
        name = self._own(handle).claim.info.id
        fresh = replace(info, id=name, head=0, n_turns=0, n_tokens=0, bytes=0, charged=0)
        with self._database.transaction() as rows:
            key = insert_session(rows, fresh, staged_for=name)
            fresh = charge(rows, key, fresh, self._limits)
        staged = self._handle(Claim(key, 1, fresh, Files()))
        with self._guard:
            self._staged.add(staged)
        return staged

    def publish(self, handle: SessionHandle, staged: SessionHandle) -> None:
        """In one transaction let `handle`'s session hold what `staged` holds; closes `staged`."""
        self._writable()
        old, new = self._own(handle), self._own(staged)
        with self._guard, old.lock, new.lock:
            before, built = old.claim, new.claim
            if new not in self._staged or built.info.id != before.info.id:
                raise InputError("publish takes what stage() returned for the same session")
            after = replace(built, epoch=before.epoch + 1)
            try:
                with self._database.transaction() as rows:
                    check_lease(rows, before)
                    check_lease(rows, built)
                    remove_session(rows, before.key)
                    rows.execute(
                        "UPDATE sessions SET staged_for = NULL, lease_epoch = ? WHERE key = ?",
                        (after.epoch, after.key),
                    )
            except BaseException:
                with self._database.transaction() as rows:
                    published = is_published(rows, after.key)
                if published:  # Ctrl-C came when COMMIT was through
                    self._swap(old, new, after)
                    self._erase()
                raise
            self._swap(old, new, after)
        self._erase()

    def delete(self, session_id: str) -> None:
        """Delete a session, its files and its records."""
        self._writable()
        with self._guard:
            self._unclaimed(session_id)
            with self._database.transaction() as rows:
                remove_session(rows, self._found(rows, session_id)["key"])
                staged = "SELECT key FROM sessions WHERE staged_for = ?"  # it goes as well
                for row in rows.execute(staged, (session_id,)).fetchall():
                    remove_session(rows, row["key"])
                rows.execute("DELETE FROM records WHERE session = ?", (session_id,))
            self._erase()

    def sweep(self, now: float | None = None) -> list[str]:
        """Delete the sessions that have expired and are not open in this process; returns their ids."""
        self._writable()
        return delete_expired(self._database, self._guard, self._claimed, self.delete, now)

    def verify(self, session_id: str | None = None) -> list[Problem]:
        """Read everything (of one session) and return what is wrong; empty means sound."""
        if session_id is not None:
            with self._database.transaction() as rows:
                self._found(rows, session_id)
        return verify(self._database, self._folder, self._store_id, session_id)

    def close(self) -> None:
        """Release locks and connections. Closing twice is fine."""
        self._sweeper.stop()  # before the guard is taken: a sweep under way needs it
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
        return SQLiteHandle(*place, claim, self._forget, self._limits, self._merge_bytes)

    def _swap(self, old: SQLiteHandle, new: SQLiteHandle, after: Claim) -> None:
        """What `publish` does behind its transaction; in this order it may break off anywhere."""
        old.take_over(after)
        new.release()
        self._staged.discard(new)

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
            self._erase()

    def _erase(self) -> None:
        work_off_queue(self._database, self._folder)
        self._database.truncate_log()

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
