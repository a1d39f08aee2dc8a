"""What a handle holds of its session, and the transaction that moves it on by one commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from longmem.errors import CorruptDataError, StaleWriterError
from longmem.store import Commit, SessionInfo
from longmem.stores.files import Files, load_files
from longmem.stores.rows import insert_file, layout_id, session_of
from longmem.stores.search_index import index_turns
from longmem.stores.turn_file import FileRow


@dataclass(frozen=True)
class Claim:
    """A session's row and files, and the lease epoch it was claimed with.

    Args:
        shared: bytes that it was charged with when it was staged, for commits of the session that it
            stands in for.
        rollbacks: how often it had been rolled back then; a reader tells by it that its head is gone.
    """

    key: int
    epoch: int
    info: SessionInfo
    files: Files
    rollbacks: int = 0
    shared: int = 0

    @cached_property
    def layout(self) -> str:
        """Hash of the session's K/V layout."""
        return layout_id(self.info)


def claim_with(rows: sqlite3.Connection, claim: Claim, file: str, store: str) -> Claim | None:
    """`claim` as the database now has it, if its session has a commit with this file."""
    row = rows.execute(
        """SELECT s.* FROM sessions s WHERE key = ? AND EXISTS (
              SELECT 1 FROM commits c JOIN files f ON f.key = c.file
              WHERE c.session = s.key AND f.name = ?)""",
        (claim.key, file),
    ).fetchone()
    if row is None:
        return None
    info = session_of(row)
    return replace(claim, info=info, files=load_files(rows, claim.key, info.head, store))


def check_belongs(file: FileRow, session: str, layout: str) -> None:
    """A file must have been written for the session that refers to it, or one it was forked from.

    Checked when the file is used and not when the session is opened: the recorded tokens of a
    session with a wrong file must stay readable, so that it can be rebuilt.

    Raises:
        CorruptDataError: it holds another session's rows, or rows of another layout.
    """
    identity = file.identity
    if (identity.session, identity.layout) != (file.origin or session, layout):
        raise CorruptDataError(
            f"session {session!r}: file {file.name} was written for session {identity.session!r}"
            f" with layout {identity.layout}; restore a backup, or rebuild the session from its"
            " recorded tokens (rebuild=True)"
        )


def advance_session(rows: sqlite3.Connection, claim: Claim, after: SessionInfo) -> None:
    """Set head and counts, if head and lease epoch are still those of the claim.

    Raises:
        StaleWriterError: they are not.
    """
    cursor = rows.execute(
        """UPDATE sessions SET head = ?, n_turns = ?, n_tokens = ?, bytes = bytes + ?,
           updated_at = ? WHERE key = ? AND head = ? AND lease_epoch = ?""",
        (
            after.head,
            after.n_turns,
            after.n_tokens,
            after.bytes - claim.info.bytes,  # a shared file may have been trimmed meanwhile
            after.updated_at,
            claim.key,
            claim.info.head,
            claim.epoch,
        ),
    )
    if cursor.rowcount != 1:
        raise StaleWriterError(
            f"session {claim.info.id!r}: another writer took it over or deleted it; nothing was"
            " written. Close the session and open it again."
        )


def insert_commit(
    rows: sqlite3.Connection, claim: Claim, commit: Commit, file: FileRow, after: SessionInfo
) -> None:
    """Insert a commit and its file."""
    rows.execute(
        """INSERT INTO commits(session, seq, file, start, stop, first_turn, stop_turn, created_at)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            claim.key,
            after.head,
            insert_file(rows, file, after.updated_at),
            commit.start,
            commit.stop,
            claim.info.n_turns,
            after.n_turns,
            after.updated_at,
        ),
    )


def insert_turns(rows: sqlite3.Connection, key: int, turns: Sequence[Mapping[str, object]]) -> None:
    """Insert the turns of a commit, as `longmem.stores.rows.turn_values` encodes them."""
    rows.executemany(
        """INSERT INTO turns(session, idx, role, text, ids, start, spans, created_at, extra,
           checksum) VALUES (:session, :idx, :role, :text, :ids, :start, :spans, :created_at,
           :extra, :checksum)""",
        [{**turn, "session": key} for turn in turns],
    )
    index_turns(rows, key, [turn["idx"] for turn in turns])


def reloaded(rows: sqlite3.Connection, claim: Claim, store: str) -> Claim | None:
    """`claim` as the database now has it; None if its session is gone."""
    row = rows.execute("SELECT * FROM sessions WHERE key = ?", (claim.key,)).fetchone()
    if row is None:
        return None
    info = session_of(row)
    files = load_files(rows, claim.key, info.head, store)
    return replace(claim, info=info, files=files, rollbacks=row["rollbacks"])


def check_lease(rows: sqlite3.Connection, claim: Claim) -> None:
    """Head and lease epoch must still be those of the claim.

    Raises:
        StaleWriterError: they are not.
    """
    held = rows.execute(
        "SELECT 1 FROM sessions WHERE key = ? AND head = ? AND lease_epoch = ?",
        (claim.key, claim.info.head, claim.epoch),
    ).fetchone()
    if held is None:
        raise StaleWriterError(
            f"session {claim.info.id!r}: another writer took it over or deleted it; nothing was"
            " changed. Close the session and open it again."
        )
