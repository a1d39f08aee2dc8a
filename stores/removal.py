"""Removing sessions and files: the mirror image of a commit.

Rows go and file names enter the unlink queue in one transaction; then the files go; then the
queue. A crash in between leaves a queue, which the next writer works off when it opens the store.
"""

from __future__ import annotations

import sqlite3

from longmem.stores.database import Database
from longmem.stores.folder import Folder
from longmem.stores.search_index import unindex_turns
from longmem.stores.trimming import trim_if_possible


def remove_session(rows: sqlite3.Connection, key: int) -> None:
    """Delete a session's rows and queue the files that no other session shares."""
    queue_files(rows, key, 0)
    unindex_turns(rows, key)
    rows.execute("DELETE FROM sessions WHERE key = ?", (key,))  # cascades to commits and turns
    _forget_files(rows)


def drop_commits(rows: sqlite3.Connection, key: int, head: int) -> None:
    """Delete a session's commits behind `head`, and queue the files that are not needed for them."""
    queue_files(rows, key, head)
    rows.execute("DELETE FROM commits WHERE session = ? AND seq > ?", (key, head))
    _forget_files(rows)


def queue_files(rows: sqlite3.Connection, key: int, head: int) -> None:
    """Before commits behind `head` are deleted: queue the files nobody else names for unlinking, and
    those of which somebody may need no more than a beginning for trimming."""
    dropped = "SELECT file FROM commits WHERE session = :key AND seq > :head"
    others = "c.file = f.key AND (c.session <> :key OR c.seq <= :head)"
    names = {"key": key, "head": head}
    for queue, column, condition in (
        ("unlink_queue(name)", "name", f"NOT EXISTS (SELECT 1 FROM commits c WHERE {others})"),
        (
            "trim_queue(file)",
            "key",
            f"commits > 1 AND EXISTS (SELECT 1 FROM commits c WHERE {others})",
        ),
    ):
        rows.execute(
            f"""INSERT OR IGNORE INTO {queue} SELECT f.{column} FROM files f
                WHERE f.key IN ({dropped}) AND {condition}""",
            names,
        )


def _forget_files(rows: sqlite3.Connection) -> None:
    rows.execute("DELETE FROM files WHERE name IN (SELECT name FROM unlink_queue)")


def work_off_queue(database: Database, folder: Folder) -> None:
    """Unlink what is queued, then forget it; deleted text leaves the write-ahead log too."""
    with database.transaction() as rows:
        names = [row["name"] for row in rows.execute("SELECT name FROM unlink_queue")]
    if not names:
        return
    folder.unlink(names)
    with database.transaction() as rows:
        rows.executemany("DELETE FROM unlink_queue WHERE name = ?", [(name,) for name in names])
    sweep(database, folder)


def sweep(database: Database, folder: Folder) -> None:
    """Remove the files of failed transactions, unless the database knows them after all."""

    def is_known(name: str) -> bool:
        with database.transaction() as rows:
            found = rows.execute("SELECT 1 FROM files WHERE name = ?", (name,)).fetchone()
        return found is not None

    folder.sweep(is_known)


def recover(database: Database, folder: Folder, store: str) -> None:
    """What a writer does before it lets anyone in: drop what a crash left unfinished."""
    with database.transaction() as rows:
        staged = rows.execute("SELECT key FROM sessions WHERE staged_for IS NOT NULL").fetchall()
        for row in staged:
            remove_session(rows, row["key"])
    folder.clear_tmp()
    trim_if_possible(database, folder, store, lambda: None)
    work_off_queue(database, folder)
    with database.transaction() as rows:
        known = {row["name"] for row in rows.execute("SELECT name FROM files")}
    orphans = folder.orphans(known)
    if orphans:
        folder.unlink(orphans)
