"""A claimed session of a `SQLiteStore`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from longmem.errors import CorruptDataError, SessionClosedError, StoreError, StoreReadOnlyError
from longmem.store import Commit, SessionInfo, Snapshot, TurnRecord
from longmem.stores.checks import check_commit, check_positions, check_rows
from longmem.stores.claim import (
    Claim,
    advance_session,
    check_belongs,
    claim_with,
    insert_commit,
    insert_turns,
)
from longmem.stores.database import Database
from longmem.stores.folder import Folder
from longmem.stores.removal import sweep
from longmem.stores.rows import turn_of, turn_values
from longmem.stores.turn_file import FileRow, Identity, TurnFile


class SQLiteHandle:
    """`longmem.store.SessionHandle` on SQLite and turn files; made by `SQLiteStore`.

    Commits of one handle follow each other; reads may come from any thread at any time. Locks are
    taken in the order store, handle, database.
    """

    def __init__(
        self,
        database: Database,
        folder: Folder,
        store: str,
        claim: Claim,
        on_close: Callable[[SQLiteHandle], None],
    ) -> None:
        self.database = database
        self._folder = folder
        self._store = store
        self._claim: Claim | None = claim
        self._id = claim.info.id
        self._on_close = on_close
        self.lock = threading.RLock()

    @property
    def claim(self) -> Claim:
        """What the handle holds.

        Raises:
            SessionClosedError: nothing any more.
        """
        claim = self._claim
        if claim is None:
            raise SessionClosedError(f"session {self._id!r} was closed; open it again")
        return claim

    @property
    def info(self) -> SessionInfo:
        """The session as of the last commit of this handle."""
        return self.claim.info

    def commit(self, commit: Commit) -> int:
        """Make `commit` durable and return the new head.

        Order: turn file written, fsynced and renamed into place, directory fsynced, then one
        transaction that compares and sets the session's head and this handle's lease epoch.

        An interrupt may come when the transaction is through already: then `info` holds the new
        head although this raised.
        """
        with self.lock:
            claim = self.claim
            if self.database.read_only:
                raise StoreReadOnlyError(
                    f"session {self._id!r}: the store is open read-only; nothing was written"
                )
            check_commit(claim.info, commit)
            turns = [turn_values(turn) for turn in commit.turns]
            file = self._folder.write(_tensors(commit), self._identity(claim, commit))
            after = _advanced(claim.info, commit, file)
            try:
                with self.database.transaction() as rows:
                    advance_session(rows, claim, after)
                    insert_commit(rows, claim, commit, file, after)
                    insert_turns(rows, claim.key, turns)
                claim.files.append(commit.start, commit.stop, file)
                self._claim = replace(claim, info=after)
            except BaseException:
                self._settle(claim, file.name)
                raise
            sweep(self.database, self._folder)
            return after.head

    def snapshot(self) -> Snapshot | None:
        """The state at the head, checked against its checksums; None before the first commit."""
        claim = self.claim
        info = claim.info
        if info.head == 0:
            return None
        parts: dict[str, list[Tensor]] = {}
        state: dict[str, Tensor] = {}
        if len(claim.files.rows) < info.head:
            raise self._gone_or(f"{len(claim.files.rows)} of {info.head} commits are recorded")
        for number, row in enumerate(claim.files.rows[: info.head], 1):
            file = self._opened(row, self._folder.open_fresh)
            for name in file.names("blocks."):
                parts.setdefault(name.removeprefix("blocks."), []).append(file.tensor(name))
            if number == info.head:
                names = file.names("state.")
                # clone: memory of torch's own, aligned as tensors that were never stored
                state = {name.removeprefix("state."): file.tensor(name).clone() for name in names}
        blocks = {name: torch.cat(tensors) for name, tensors in parts.items()}
        return Snapshot(info.head, info.n_tokens, info.n_turns, blocks, state)

    def read_kv(self, layer: int, start: int, stop: int) -> Tensor:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer, checked against their checksums."""
        claim = self.claim
        check_rows(claim.info, layer, start, stop)
        heads, dim = claim.info.layout[layer]
        dtype = getattr(torch, claim.info.dtype)
        out = torch.empty(stop - start, 2, heads, dim, dtype=dtype)
        done = start
        for row, low, high in claim.files.pieces(start, stop):
            file = self._opened(row, self._folder.open)
            out[low - start : high - start] = file.kv_rows(layer, low, high)
            done = high
        if done < stop:
            raise self._gone_or(f"no file is recorded for token {done}")
        return out

    def turns(self, start: int = 0, stop: int | None = None) -> list[TurnRecord]:
        """Turns ``start <= index < stop``, in order."""
        claim = self.claim
        start, stop = max(start, 0), _clamp(stop, claim.info.n_turns)
        with self.database.transaction() as rows:
            found = rows.execute(
                "SELECT * FROM turns WHERE session = ? AND idx >= ? AND idx < ? ORDER BY idx",
                (claim.key, start, stop),
            ).fetchall()
        if len(found) != max(stop - start, 0):
            raise self._gone_or(f"{len(found)} of turns {start} to {stop} are recorded")
        return [turn_of(row, self._id) for row in found]

    def turns_at(self, positions: Sequence[int]) -> list[TurnRecord]:
        """For each token position the turn that holds it."""
        claim = self.claim
        check_positions(claim.info, positions)
        found: dict[int, TurnRecord] = {}
        with self.database.transaction() as rows:
            for position in dict.fromkeys(positions):
                row = rows.execute(
                    """SELECT * FROM turns WHERE session = ? AND start <= ?
                       ORDER BY start DESC, idx DESC LIMIT 1""",
                    (claim.key, position),
                ).fetchone()
                if row is None:
                    raise self._gone_or(f"no turn is recorded for token {position}")
                found[position] = turn_of(row, self._id)
        return [found[position] for position in positions]

    def close(self) -> None:
        """Release the claim. Closing twice is fine."""
        self._on_close(self)

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

    def _opened(self, row: FileRow, how: Callable[[FileRow], TurnFile]) -> TurnFile:
        check_belongs(row, self._id, self.claim.layout)
        try:
            return how(row)
        except CorruptDataError as error:
            if self._is_gone():
                raise self._gone() from None
            raise error

    def _is_gone(self) -> bool:
        """Whether a writer deleted or rebuilt the session under this read-only handle."""
        if not self.database.read_only:
            return False
        with self.database.transaction() as rows:
            key = self.claim.key
            return not rows.execute("SELECT 1 FROM sessions WHERE key = ?", (key,)).fetchone()

    def _gone(self) -> SessionClosedError:
        return SessionClosedError(
            f"session {self._id!r} was deleted or rebuilt by its writer; open it again"
        )

    def _gone_or(self, what: str) -> SessionClosedError | CorruptDataError:
        if self._is_gone():
            return self._gone()
        return CorruptDataError(f"session {self._id!r}: {what}; restore the store from a backup")


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


def _clamp(stop: int | None, n_turns: int) -> int:
    return n_turns if stop is None else min(max(stop, 0), n_turns)
