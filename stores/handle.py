"""A claimed session of a `SQLiteStore`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from torch import Tensor

from longmem.errors import (
    CorruptDataError,
    SessionClosedError,
    StaleWriterError,
    StoreError,
    StoreFullError,
    StoreReadOnlyError,
)
from longmem.store import Commit, SessionInfo
from longmem.stores.checks import check_commit
from longmem.stores.claim import (
    Claim,
    advance_session,
    check_belongs,
    claim_with,
    insert_commit,
    insert_turns,
    reloaded,
)
from longmem.stores.claimed import ClaimedSession
from longmem.stores.database import Database
from longmem.stores.files import Extent
from longmem.stores.folder import Folder
from longmem.stores.forking import check_head, check_window, point_of
from longmem.stores.merged_file import write_merged
from longmem.stores.merging import (
    identity_of,
    keeps_kv,
    merged,
    next_run,
    replace_files,
    stale,
)
from longmem.stores.open_file import TurnFile
from longmem.stores.quota import Limits
from longmem.stores.record_rows import insert_records
from longmem.stores.removal import sweep, work_off_queue
from longmem.stores.rewinding import rewind
from longmem.stores.rows import session_by_key, turn_values
from longmem.stores.turn_file import FileRow, Identity
from longmem.stores.usage import charge, check_room, limited

_MERGE_ADVICE = (
    "Nothing was changed, the session goes on; free space or fix the disk, and its files are"
    " merged later."
)


class SQLiteHandle(ClaimedSession):
    """`longmem.store.SessionHandle` on SQLite and turn files; made by `SQLiteStore`.

    Commits of one handle follow each other; one merge may run beside them. Locks are taken in the
    order store, merging, handle, database.

    Args:
        tidy: removes the files a transaction left without need; takes the store's lock.
        merge_bytes: K/V bytes of a merged file; None: files are never merged.
    """

    def __init__(
        self,
        database: Database,
        folder: Folder,
        store: str,
        claim: Claim,
        on_close: Callable[[SQLiteHandle], None],
        tidy: Callable[[], None],
        limits: Limits,
        merge_bytes: int | None,
    ) -> None:
        super().__init__(database, folder, store, claim)
        self._on_close = on_close
        self._tidy = tidy
        self._limits = limits
        self._merge_bytes = merge_bytes
        self._merging = threading.Lock()
        self._leaving = False

    def commit(self, commit: Commit) -> int:
        """Make `commit` durable and return the new head.

        Order: turn file written, fsynced and renamed into place, directory fsynced, then one
        transaction that compares and sets the session's head and this handle's lease epoch.

        An interrupt may come when the transaction is through already: then `info` holds the new
        head although this raised.
        """
        self._writable()
        with self.lock:
            claim = self.claim
            check_commit(claim.info, commit)
            turns = [turn_values(turn) for turn in commit.turns]
            tensors, identity = _tensors(commit), self._identity(claim, commit)
            check_room(self.database, claim, self._limits, tensors, identity, turns)
            file = self._folder.write(tensors, identity)
            after = _advanced(claim.info, commit, file)
            try:
                with self.database.transaction() as rows:
                    advance_session(rows, claim, after)
                    insert_commit(rows, claim, commit, file, after)
                    insert_turns(rows, claim.key, turns)
                    insert_records(rows, claim, after.head, commit.records)
                    after = charge(rows, claim.key, after, self._limits, claim.shared)
                claim.files.append(Extent(commit.start, commit.stop, after.head, after.head, file))
                self._claim = replace(claim, info=after)
            except BaseException as error:
                self._settle(claim, file.name)
                if isinstance(error, StoreFullError):
                    with suppress(StoreError):  # rolled back before COMMIT: the file can go at once
                        self._folder.unlink([file.name])
                raise
            sweep(self.database, self._folder)
            return after.head

    def merge(self, upto: int, *, drop_kv: bool = False, keep: int = 0) -> bool:
        """Merge small files of commits that end at or before token `upto` into one."""
        self._writable()
        with self._merging:
            claim = self.claim
            if self._merge_bytes is None:
                return False
            run = next_run(claim, upto, self._merge_bytes, drop_kv=drop_kv, keep=keep)
            if not run:
                return False
            file = self._merged(claim, run, kv=keeps_kv(run, drop_kv, keep))
            self._put_in_place(claim.key, run, file)
            with suppress(StoreError):  # what cannot be unlinked stays queued
                work_off_queue(self.database, self._folder)
            return True

    def rollback(self, head: int, *, window: int = 0) -> None:
        """Drop all commits behind `head`, their turns, and the records tied to them."""
        self._writable()
        with self._merging, self.lock:
            claim = self.claim
            check_head(claim.info, head)
            if head == claim.info.head:
                return
            try:
                with self.database.transaction() as rows:
                    stop = point_of(rows, claim.key, head).n_tokens
                    check_window(self._id, claim.files, stop, window)
                    rewind(rows, claim, head)
                    after = reloaded(rows, claim, self._store)
                self._claim = after
            except BaseException:
                with suppress(StoreError):
                    self.refresh()  # an interrupt may have come when COMMIT was through
                raise
        with suppress(StoreError):  # what cannot be unlinked stays queued
            self._tidy()

    def refresh(self) -> None:
        """Go on from what the database holds: other sessions' changes may concern shared files."""
        with self.lock:
            if self._claim is not None:
                with self.database.transaction() as rows:
                    self._claim = reloaded(rows, self._claim, self._store) or self._claim

    def limit(self, *, max_bytes: int | None, ttl: float | None) -> None:
        """Set how many bytes the session may be charged with, and when it expires."""
        with self.lock:
            self._claim = limited(self.database, self.claim, max_bytes, ttl)

    def close(self) -> None:
        """Release the claim. Closing twice is fine. A merge that is under way breaks off."""
        self._leaving = True
        with self._merging:
            pass  # a merge under way has broken off; `_leaving` lets no other begin
        self._on_close(self)  # takes the store's lock, which comes before `_merging`

    def release(self) -> Claim | None:
        """Give up what the handle holds; None if it holds nothing."""
        with self.lock:
            claim, self._claim = self._claim, None
            return claim

    def take_over(self, claim: Claim) -> None:
        """Go on with another claim on the same session id; `SQLiteStore.publish` rebuilt it."""
        with self.lock:
            self._claim = claim

    def _settle(self, claim: Claim, file: str) -> None:
        """After an exception: go on from what the database holds, with the commit or without."""
        try:
            with self.database.transaction() as rows:
                after = claim_with(rows, claim, file, self._store)
        except StoreError:
            after = None  # it cannot say; `sweep` asks it again
        if after is None:
            self._folder.abandon(file)
        else:
            self._claim = after

    def _identity(self, claim: Claim, commit: Commit) -> Identity:
        return Identity(self._store, self._id, claim.layout, commit.start, commit.stop)

    def _merged(self, claim: Claim, run: Sequence[Extent], *, kv: bool) -> FileRow:
        """Write the file that will replace those of `run`."""
        files = [extent.file for extent in run]
        identity = identity_of(self._id, run)
        try:
            return self._folder.place(
                lambda path: write_merged(path, files, self._source, identity, kv=kv),
                self._id,
                _MERGE_ADVICE,
            )
        except CorruptDataError:
            if self.claim.key != claim.key:  # rebuilt meanwhile, and its files are gone
                raise stale(claim.info) from None
            raise

    def _source(self, row: FileRow) -> TurnFile:
        """A file to merge; breaks the merge off when the session closes."""
        if self._leaving:
            raise SessionClosedError(f"session {self._id!r} was closed; nothing was merged")
        check_belongs(row, self._id, self.claim.layout)
        return self._folder.open_fresh(row)

    def _put_in_place(self, key: int, run: Sequence[Extent], file: FileRow) -> None:
        """Let commits and this handle go over to a merged file."""
        with self.lock:
            claim = self._claim
            if claim is None or claim.key != key:
                self._folder.unlink([file.name])
                raise stale(self.info)
            try:
                with self.database.transaction() as rows:
                    replace_files(rows, claim, run, file)
                    info = session_by_key(rows, key)
                self._claim = replace(claim, info=info, files=merged(claim.files, run, file))
            except BaseException as error:
                self._settle(claim, file.name)
                if isinstance(error, StaleWriterError):
                    self._folder.unlink([file.name])  # rolled back before COMMIT
                raise

    def _writable(self) -> None:
        if self.database.read_only and self.claim:
            raise StoreReadOnlyError(
                f"session {self._id!r}: the store is open read-only; nothing was written"
            )


def _tensors(commit: Commit) -> Mapping[str, Tensor]:
    tensors = {f"kv.{layer}": rows for layer, rows in enumerate(commit.kv)}
    tensors.update({f"blocks.{name}": tensor for name, tensor in commit.blocks.items()})
    tensors.update({f"state.{name}": tensor for name, tensor in commit.state.items()})
    return tensors


def _advanced(info: SessionInfo, commit: Commit, file: FileRow) -> SessionInfo:
    return replace(
        info,
        head=info.head + 1,
        n_turns=info.n_turns + len(commit.turns),
        n_tokens=commit.stop,
        bytes=info.bytes + file.size,
        updated_at=time.time(),
    )
