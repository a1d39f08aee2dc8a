"""Removing sessions and files: the mirror image of a commit.

Rows go and file names enter the unlink queue in one transaction; then the files go; then the
queue. A crash in between leaves a queue, which the next writer works off when it opens the store.
"""

from __future__ import annotations

import sqlite3

from longmem.stores.database import Database
from longmem.stores.folder import Folder


def remove_session(rows: sqlite3.Connection, key: int) -> None:
    """Delete a session's rows and queue the files that no other session shares."""
    rows.execute(
        """INSERT OR IGNORE INTO unlink_queue(name) SELECT f.name FROM files f
           WHERE f.key IN (SELECT file FROM commits WHERE session = :key)
             AND NOT EXISTS (SELECT 1 FROM commits c WHERE c.file = f.key AND c.session <> :key)""",
        {"key": key},
    )
    rows.execute("DELETE FROM sessions WHERE key = ?", (key,))  # cascades to commits and turns
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


def recover(database: Database, folder: Folder) -> None:
    """What a writer does before it lets anyone in: drop what a crash left unfinished."""
    with database.transaction() as rows:
        staged = rows.execute("SELECT key FROM sessions WHERE staged_for IS NOT NULL").fetchall()
        for row in staged:
            remove_session(rows, row["key"])
    work_off_queue(database, folder)
    folder.clear_tmp()
    with database.transaction() as rows:
        known = {row["name"] for row in rows.execute("SELECT name FROM files")}
    orphans = folder.orphans(known)
    if orphans:
        folder.unlink(orphans)
