"""Full-text index over the turns of all sessions, written in the transactions that write turns.

An FTS5 table whose content stays in ``turns``; a turn's number in it is ``session key << 32 | index``,
so that one session's turns are a range. Not kept by triggers: `trusted_schema` is off, so that a
database somebody has tampered with runs nothing, and then SQLite lets no trigger use FTS5.

A build of SQLite without FTS5 marks the index as stale, and the next writer that has it makes it
anew. Nothing but `search` misses it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache

from longmem.errors import StoreError

CANDIDATES = 2048
"""Turns that are weighed against each other in one search; of more that match, the newest."""

_NEEDED = "use a Python whose sqlite3 module has FTS5 (python.org's and most Linux builds have it)"
_DOCID = "(session << 32) | idx"


@cache
def available() -> bool:
    """Whether this build of SQLite has FTS5."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.close()
    return True


def prepare_index(rows: sqlite3.Connection) -> None:
    """On opening for writing: make the index if it is missing or stale; index every turn there is."""
    kept = rows.execute("SELECT 1 FROM meta WHERE name = 'search'").fetchone()
    if not available():
        rows.execute("DELETE FROM meta WHERE name = 'search'")
    elif kept is None:
        rows.execute(
            """CREATE VIRTUAL TABLE IF NOT EXISTS turn_words USING fts5(
               text, content='turn_texts', content_rowid='docid', columnsize=0)"""
        )
        rows.execute("INSERT INTO turn_words(turn_words) VALUES ('rebuild')")
        rows.execute("INSERT INTO meta(name, value) VALUES ('search', 'fts5')")


def index_turns(rows: sqlite3.Connection, key: int, turns: Sequence[object]) -> None:
    """Add turns that were just inserted, by their indices."""
    if available():
        rows.executemany(
            f"""INSERT INTO turn_words(rowid, text)
                SELECT {_DOCID}, text FROM turns WHERE session = ? AND idx = ?""",
            [(key, index) for index in turns],
        )


def index_session(rows: sqlite3.Connection, key: int) -> None:
    """Add all turns of a session that was not indexed."""
    if available():
        rows.execute(
            f"INSERT INTO turn_words(rowid, text) SELECT {_DOCID}, text FROM turns WHERE session = ?",
            (key,),
        )


def unindex_turns(rows: sqlite3.Connection, key: int, start: int = 0) -> None:
    """Take the turns of a session from index `start` on out, before they are deleted."""
    if available():
        rows.execute(
            f"""INSERT INTO turn_words(turn_words, rowid, text)
                SELECT 'delete', {_DOCID}, text FROM turns WHERE session = ? AND idx >= ?""",
            (key, start),
        )


def matching_texts(rows: sqlite3.Connection, key: int, words: Sequence[str]) -> dict[int, str]:
    """Text of a session's turns that hold one of the words, by index.

    Raises:
        StoreError: there is no index.
    """
    if not words:
        return {}
    if rows.execute("SELECT 1 FROM meta WHERE name = 'search'").fetchone() is None:
        raise StoreError(
            "the turns cannot be searched: the SQLite that last wrote this store has no full-text"
            f" search (FTS5); {_NEEDED}, and open the store once for writing"
        )
    if not available():
        raise StoreError(f"the turns cannot be searched: this SQLite has no FTS5; {_NEEDED}")
    found = rows.execute(
        """SELECT rowid & 0xffffffff AS idx FROM turn_words
           WHERE turn_words MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid DESC LIMIT ?""",
        (" OR ".join(f'"{w}"' for w in words), key << 32, key << 32 | 0xFFFFFFFF, CANDIDATES),
    ).fetchall()
    texts = "SELECT text FROM turns WHERE session = ? AND idx = ?"
    return {row["idx"]: rows.execute(texts, (key, row["idx"])).fetchone()["text"] for row in found}


def clean_index(rows: sqlite3.Connection) -> None:
    """Let the index hold no word that no turn holds.

    Raises:
        StoreError: there is an index, and this build of SQLite cannot change it.
    """
    made = rows.execute("SELECT 1 FROM sqlite_master WHERE name = 'turn_words'").fetchone()
    if made is None:
        return
    if not available():
        raise StoreError(
            f"words of deleted turns may be left in the full-text index: this SQLite has no FTS5;"
            f" {_NEEDED}, and call scrub() there"
        )
    rows.execute("INSERT INTO turn_words(turn_words) VALUES ('optimize')")


def check_index(rows: sqlite3.Connection) -> None:
    """Compare the index with the turns, where there is one and it can be read.

    Raises:
        sqlite3.DatabaseError: it holds something else.
    """
    kept = rows.execute("SELECT 1 FROM meta WHERE name = 'search'").fetchone()
    if kept is not None and available():
        rows.execute("INSERT INTO turn_words(turn_words, rank) VALUES ('integrity-check', 1)")
