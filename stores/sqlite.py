"""The default store: a directory with one SQLite database and immutable turn files.

longmem.db    sessions, turns, commits, records, and the checksums of all files
files/        safetensors: one file per commit, and those that small ones were merged into
tmp/          files being written; emptied when a writer opens the store
lock          held by the one writing process; names its pid
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace

from longmem.errors import InputError, SessionInUseError, StoreError
from longmem.store import Problem, Record, SessionHandle, SessionInfo
from longmem.stores.checks import check_id
from longmem.stores.claim import Claim, check_lease
from longmem.stores.expiry import Sweeper, check_sweeping, delete_expired
from longmem.stores.files import Files, load_files
from longmem.stores.forking import check_head, check_shared, check_window, point_of, share_commits
from longmem.stores.handle import SQLiteHandle
from longmem.stores.merging import MERGE_BYTES
from longmem.stores.opened import OpenedStore
from longmem.stores.quota import Limits
from longmem.stores.record_rows import insert_records, move_records
from longmem.stores.records import SQLiteRecords
from longmem.stores.removal import remove_session
from longmem.stores.rows import (
    find_session,
    insert_session,
    is_published,
    session_by_key,
    session_of,
    session_row,
)
from longmem.stores.scrubbing import owe_scrub, scrub
from longmem.stores.usage import charge
from longmem.stores.verify import verify


class SQLiteStore(OpenedStore):
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
        limits = Limits(max_bytes, max_owner_bytes)
        check_sweeping(sweep_every, read_only)
        super().__init__(path, read_only=read_only, limits=limits, merge_bytes=merge_bytes)
        self._sweeper = Sweeper(self.sweep, sweep_every)

    @property
    def records(self) -> SQLiteRecords:
        """Namespaced JSON documents."""
        return SQLiteRecords(self._database)

    def create(self, info: SessionInfo) -> SessionHandle:
        """Create and claim a session that is not there yet."""
        self._writable()
        check_id(info.id)
        fresh = replace(_empty(info), parent=None, parent_turn=None)
        with self._guard:
            self._unclaimed(info.id)
            with self._database.transaction() as rows:
                self._unused(rows, info.id)
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
            handle = self._handle(Claim(row["key"], epoch, info, files, row["rollbacks"]))
            self._claimed[session_id] = handle
            return handle

    def info(self, session_id: str) -> SessionInfo:
        """A session, open or not, as of its last commit."""
        with self._database.transaction() as rows:
            return session_of(self._found(rows, session_id))

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

    def fork(
        self, session_id: str, info: SessionInfo, head: int, *, window: int = 0
    ) -> SessionHandle:
        """Create and claim a session that begins with commits ``1 .. head`` of another."""
        self._writable()
        check_id(info.id)
        with self._guard:
            self._unclaimed(info.id)
            with self._database.transaction() as rows:
                self._unused(rows, info.id)
                source = self._found(rows, session_id)
                of = session_of(source)
                check_head(of, head)
                fresh = replace(
                    _empty(info),
                    fingerprint=of.fingerprint,
                    layout=of.layout,
                    dtype=of.dtype,
                    parent=session_id,
                    parent_turn=point_of(rows, source["key"], head).n_turns - 1,
                )
                claim = self._begun(rows, source, fresh, head, window)
            handle = self._handle(claim)
            self._claimed[info.id] = handle
            return handle

    def stage(
        self, handle: SessionHandle, info: SessionInfo, head: int = 0, *, window: int = 0
    ) -> SessionHandle:
        """A hidden stand-in for a claimed session, to be rebuilt under a new `info`.

        It goes by the session's id whatever `info` says, and is dropped when it is closed or the
        store is opened anew before `publish`.
        """
        self._writable()
        claim = self._own(handle).claim
        of = claim.info
        check_shared(of, info, head)
        fresh = replace(_empty(info), id=of.id, parent=of.parent, parent_turn=of.parent_turn)
        with self._guard:
            with self._database.transaction() as rows:
                check_lease(rows, claim)
                source = session_row(rows, claim.key)
                staged = self._handle(
                    self._begun(rows, source, fresh, head, window, staged_for=of.id)
                )
            self._staged.add(staged)
        return staged

    def publish(
        self,
        handle: SessionHandle,
        staged: SessionHandle,
        *,
        heads: Mapping[int, int | None] | None = None,
        records: Sequence[Record] = (),
        forgets: bool = False,
    ) -> None:
        """In one transaction let `handle`'s session hold what `staged` holds; closes `staged`."""
        self._writable()
        old, new = self._own(handle), self._own(staged)
        with self._guard, old.lock, new.lock:
            before, built = old.claim, new.claim
            if new not in self._staged or built.info.id != before.info.id:
                raise InputError("publish takes what stage() returned for the same session")
            after = replace(built, epoch=before.epoch + 1, shared=0)
            try:
                with self._database.transaction() as rows:
                    check_lease(rows, before)
                    check_lease(rows, built)
                    remove_session(rows, before.key)
                    move_records(rows, after.info.id, heads or {})
                    rows.execute(
                        "UPDATE sessions SET staged_for = NULL, lease_epoch = ? WHERE key = ?",
                        (after.epoch, after.key),
                    )
                    insert_records(rows, after, after.info.head, records)
                    if forgets:
                        owe_scrub(rows)
            except BaseException:
                with self._database.transaction() as rows:
                    published = is_published(rows, after.key)
                if published:  # Ctrl-C came when COMMIT was through
                    self._swap(old, new, after)
                    self._tidy()
                raise
            self._swap(old, new, after)
        self._tidy()

    def delete(self, session_id: str) -> None:
        """Delete a session, its files and its records."""
        self._delete(session_id)

    def erase(self, session_id: str) -> None:
        """Delete a session, and leave nothing of it to be found."""
        self._delete(session_id, scrubbed=True)
        try:
            self.scrub()
        except StoreError as error:
            raise StoreError(
                f"session {session_id!r} was deleted, but traces of it may be left: {error}. Call"
                " scrub() when that is mended."
            ) from error

    def scrub(self) -> None:
        """Remove every trace of what was deleted, rolled back or replaced before."""
        self._writable()
        with self._guard:
            scrub(self._database, self._folder, self._store_id, self._refresh)

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
        super().close()

    def _swap(self, old: SQLiteHandle, new: SQLiteHandle, after: Claim) -> None:
        """What `publish` does behind its transaction; in this order it may break off anywhere."""
        old.take_over(after)
        new.release()
        self._staged.discard(new)

    def _begun(
        self,
        rows: sqlite3.Connection,
        source: sqlite3.Row,
        fresh: SessionInfo,
        head: int,
        window: int,
        *,
        staged_for: str | None = None,
    ) -> Claim:
        """A new session that holds the first `head` commits of `source`."""
        key = insert_session(rows, fresh, staged_for=staged_for)
        share_commits(rows, source, key, fresh.id, head)
        if staged_for is None or not head:
            charge(rows, key, fresh, self._limits)
        info, files = session_by_key(rows, key), load_files(rows, key, head, self._store_id)
        check_window(source["id"], files, info.n_tokens, window)
        return Claim(key, 1, info, files, shared=info.charged if staged_for and head else 0)

    def _unused(self, rows: sqlite3.Connection, session_id: str) -> None:
        if find_session(rows, session_id) is not None:
            raise SessionInUseError(f"session {session_id!r} exists already; open it")


def _empty(info: SessionInfo) -> SessionInfo:
    return replace(info, head=0, n_turns=0, n_tokens=0, bytes=0, charged=0)
