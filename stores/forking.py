"""Sessions that begin with commits of another: rows are copied, files are shared."""

from __future__ import annotations

import sqlite3

from longmem.errors import InputError, StoreError
from longmem.store import CommitPoint, SessionInfo
from longmem.stores.files import Files
from longmem.stores.search_index import index_session

BYTES = """(SELECT coalesce(sum(f.bytes), 0) FROM files f
             WHERE f.key IN (SELECT c.file FROM commits c WHERE c.session = sessions.key))"""
"""SQL for the bytes of the files that a row of ``sessions`` names."""


def check_head(info: SessionInfo, head: int) -> None:
    """Refuse a head the session never had.

    Raises:
        InputError: names those it has.
    """
    if not 0 <= head <= info.head:
        raise InputError(
            f"session {info.id!r} has no head {head}: its commits are numbered 1 to {info.head}, 0 is"
            " the empty session"
        )


def check_shared(of: SessionInfo, info: SessionInfo, head: int) -> None:
    """Refuse a stand-in that could not hold commits of the session it stands in for.

    Raises:
        InputError: no such head, or K/V of another shape.
    """
    check_head(of, head)
    if head and (info.layout, info.dtype) != (of.layout, of.dtype):
        raise InputError(
            f"session {of.id!r}: a stand-in with another K/V layout or dtype shares no commits;"
            " stage it with head=0"
        )


def check_window(session_id: str, files: Files, stop: int, window: int) -> None:
    """Refuse a head before which K/V rows that somebody is going to read are gone.

    Args:
        files: of the session `session_id`, or of one that begins as it does.
        stop: tokens up to that head.
        window: tokens before it.

    Raises:
        StoreError: they were dropped.
    """
    for extent in reversed(files.extents):
        if extent.stop <= stop - window:
            return
        if extent.start < stop and window and not extent.file.kv:
            raise StoreError(
                f"session {session_id!r}: the K/V rows of tokens {extent.start} to {extent.stop},"
                f" which its window needs at token {stop}, were dropped when its files were merged;"
                " nothing was changed. Take a later turn, or rebuild the session (rebuild=True);"
                " with codec='exact' they are kept"
            )


def point_of(rows: sqlite3.Connection, key: int, head: int) -> CommitPoint:
    """Where commit `head` of a session ends."""
    row = rows.execute(
        "SELECT seq, stop_turn, stop FROM commits WHERE session = ? AND seq = ?", (key, head)
    ).fetchone()
    return CommitPoint(0, 0, 0) if row is None else CommitPoint(*row)


def share_commits(
    rows: sqlite3.Connection, source: sqlite3.Row, key: int, session_id: str, head: int
) -> None:
    """Let the empty session `key` hold the first `head` commits of `source` and their turns."""
    point = point_of(rows, source["key"], head)
    names = {"new": key, "source": source["key"], "head": head, "turns": point.n_turns}
    rows.execute(
        """INSERT INTO commits(session, seq, file, start, stop, first_turn, stop_turn, created_at,
             origin)
           SELECT :new, seq, file, start, stop, first_turn, stop_turn, created_at,
             nullif(coalesce(origin, :source_id), :new_id)
           FROM commits WHERE session = :source AND seq <= :head""",
        {**names, "source_id": source["id"], "new_id": session_id},
    )
    rows.execute(
        """INSERT INTO turns(session, idx, role, text, ids, start, spans, created_at, extra, checksum)
           SELECT :new, idx, role, text, ids, start, spans, created_at, extra, checksum
           FROM turns WHERE session = :source AND idx < :turns""",
        names,
    )
    index_session(rows, key)
    rows.execute(
        f"UPDATE sessions SET head = ?, n_turns = ?, n_tokens = ?, bytes = {BYTES} WHERE key = ?",
        (point.head, point.n_turns, point.n_tokens, key),
    )
