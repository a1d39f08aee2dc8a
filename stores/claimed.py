"""What a claimed session of a `SQLiteStore` holds, for reading."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from longmem.errors import CorruptDataError, SessionClosedError
from longmem.store import CommitPoint, SessionInfo, Snapshot, TurnRecord
from longmem.stores.checks import check_positions
from longmem.stores.claim import Claim, check_belongs
from longmem.stores.database import Database
from longmem.stores.files import load_files
from longmem.stores.folder import Folder
from longmem.stores.open_file import TurnFile
from longmem.stores.reading import Reading
from longmem.stores.rows import turn_of
from longmem.stores.search_index import matching_texts
from longmem.stores.turn_file import FileRow
from longmem.stores.words import query_words, ranked

Result = TypeVar("Result")


class ClaimedSession:
    """The reading half of `longmem.stores.handle.SQLiteHandle`; from any thread at any time.

    Files that were merged while they were looked for are looked for again, in the new list.
    """

    def __init__(self, database: Database, folder: Folder, store: str, claim: Claim) -> None:
        self.database = database
        self._folder = folder
        self._store = store
        self._claim: Claim | None = claim
        self._id = claim.info.id
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

    def snapshot(self, lazy: Sequence[str] = ()) -> Snapshot | None:
        """The state at the head, checked against its checksums; None before the first commit."""
        return self._read(lambda reading: reading.snapshot(lazy), fresh=True)

    def read_kv(self, layer: int, start: int, stop: int) -> Tensor:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer, checked against their checksums."""
        return self.read_spans(layer, [(start, stop)])[0]

    def read_spans(self, layer: int, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """K/V rows ``[stop - start, 2, H_kv, D]`` of one layer for each span."""
        return self._read(lambda reading: reading.kv(layer, spans))

    def read_blocks(self, name: str, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Rows of an append-only tensor for each span."""
        return self._read(lambda reading: reading.blocks(name, spans))

    def turns(self, start: int = 0, stop: int | None = None) -> list[TurnRecord]:
        """Turns ``start <= index < stop``, in order."""

        def ask(rows: sqlite3.Connection, claim: Claim) -> list[sqlite3.Row]:
            first, last = max(start, 0), _clamp(stop, claim.info.n_turns)
            found = rows.execute(
                "SELECT * FROM turns WHERE session = ? AND idx >= ? AND idx < ? ORDER BY idx",
                (claim.key, first, last),
            ).fetchall()
            if len(found) != max(last - first, 0):
                raise self._broken(f"{len(found)} of turns {first} to {last} are recorded")
            return found

        return [turn_of(row, self._id) for row in self._query(ask)]

    def turns_at(self, positions: Sequence[int]) -> list[TurnRecord]:
        """For each token position the turn that holds it."""

        def ask(rows: sqlite3.Connection, claim: Claim) -> dict[int, TurnRecord]:
            check_positions(claim.info, positions)
            found: dict[int, TurnRecord] = {}
            for position in dict.fromkeys(positions):
                row = rows.execute(
                    """SELECT * FROM turns WHERE session = ? AND start <= ?
                       ORDER BY start DESC, idx DESC LIMIT 1""",
                    (claim.key, position),
                ).fetchone()
                if row is None:
                    raise self._broken(f"no turn is recorded for token {position}")
                found[position] = turn_of(row, self._id)
            return found

        found = self._query(ask)
        return [found[position] for position in positions]

    def point(self, n_turns: int) -> CommitPoint:
        """The last commit that ends at or before the first `n_turns` turns."""

        def ask(rows: sqlite3.Connection, claim: Claim) -> CommitPoint:
            found = rows.execute(
                """SELECT seq, stop_turn, stop FROM commits
                   WHERE session = ? AND seq <= ? AND stop_turn <= ? ORDER BY seq DESC LIMIT 1""",
                (claim.key, claim.info.head, n_turns),
            ).fetchone()
            return CommitPoint(0, 0, 0) if found is None else CommitPoint(*found)

        return self._query(ask)

    def points(self, start_head: int = 0) -> list[CommitPoint]:
        """Where the commits behind `start_head` end, in order."""

        def ask(rows: sqlite3.Connection, claim: Claim) -> list[CommitPoint]:
            found = rows.execute(
                """SELECT seq, stop_turn, stop FROM commits
                   WHERE session = ? AND seq > ? AND seq <= ? ORDER BY seq""",
                (claim.key, start_head, claim.info.head),
            ).fetchall()
            return [CommitPoint(*row) for row in found]

        return self._query(ask)

    def search(self, query: str, k: int) -> list[tuple[int, float, str]]:
        """The `k` turns whose text matches words of `query` best: (turn index, score, snippet)."""
        words = query_words(query)
        texts, n_turns = self._query(
            lambda rows, claim: (matching_texts(rows, claim.key, words), claim.info.n_turns)
        )
        seen = {index: text for index, text in texts.items() if index < n_turns}
        return ranked(query, seen, n_turns, k)

    def _query(self, ask: Callable[[sqlite3.Connection, Claim], Result]) -> Result:
        """What a transaction finds while the session is what the claim says; asked again if it was
        rebuilt or rolled back since the claim was looked at.

        Raises:
            SessionClosedError: another process, the writer, did that, or deleted it.
        """
        claim = self.claim
        while True:
            with self.database.transaction() as rows:
                if not _has_gone(rows, claim):
                    return ask(rows, claim)
            now = self._settled()
            if self.database.read_only or (now.key, now.rollbacks) == (claim.key, claim.rollbacks):
                raise self._gone()
            claim = now

    def _settled(self) -> Claim:
        """The claim, once who is changing the session in this process has noted what it holds then."""
        with self.lock:
            return self.claim

    def _read(self, read: Callable[[Reading], Result], *, fresh: bool = False) -> Result:
        """Read from the session's files; again if they were merged meanwhile.

        Args:
            fresh: open files anew, to see them as they now lie on disk.
        """
        claim = self.claim
        while True:
            try:
                return read(self._reading(claim, fresh))
            except CorruptDataError:
                now = self._claim_now(claim)
                if now is None:
                    raise
                claim = now

    def _reading(self, claim: Claim, fresh: bool) -> Reading:
        opener = self._folder.opener(fresh=fresh)

        def opened(row: FileRow) -> TurnFile:
            check_belongs(row, self._id, claim.layout)
            return opener(row)

        return Reading(claim.info, claim.files, opened)

    def _claim_now(self, claim: Claim) -> Claim | None:
        """The claim, if its files are others by now than when `claim` was taken.

        Raises:
            SessionClosedError: the writer deleted it, rebuilt it or rolled it back.
        """
        if not self.database.read_only:
            current = self._settled()
            return None if current.files is claim.files else current
        with self.database.transaction() as rows:
            if _has_gone(rows, claim):
                raise self._gone() from None
            files = load_files(rows, claim.key, claim.info.head, self._store)
        if files.extents == claim.files.extents:
            return None
        with self.lock:
            self._claim = replace(self.claim, files=files)
            return self._claim

    def _gone(self) -> SessionClosedError:
        return SessionClosedError(
            f"session {self._id!r} was deleted, rebuilt or rolled back by its writer; open it again"
        )

    def _broken(self, what: str) -> CorruptDataError:
        return CorruptDataError(f"session {self._id!r}: {what}; restore the store from a backup")


def _has_gone(rows: sqlite3.Connection, claim: Claim) -> bool:
    """Whether the session was deleted, rebuilt (then it has another key) or rolled back."""
    row = rows.execute("SELECT rollbacks FROM sessions WHERE key = ?", (claim.key,)).fetchone()
    return row is None or row["rollbacks"] != claim.rollbacks


def _clamp(stop: int | None, n_turns: int) -> int:
    return n_turns if stop is None else min(max(stop, 0), n_turns)
