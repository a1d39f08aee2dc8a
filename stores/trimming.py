"""Rewriting merged files of which sessions only share a beginning any more.

A rollback, a deletion or a rebuild can leave a merged file whose last commits no session refers to.
Its transaction notes the file in ``trim_queue``. Then, as safely as files are merged, the beginning
that is still shared is written to a new file, one transaction lets the commits name that, and the
old file is unlinked. What a crash leaves undone, the next writer does when it opens the store.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from longmem.errors import StoreError
from longmem.stores import turn_file
from longmem.stores.commit_index import INDEX, STATES, CommitIndex
from longmem.stores.database import Database
from longmem.stores.folder import Folder
from longmem.stores.open_file import TurnFile
from longmem.stores.rows import file_of, insert_file
from longmem.stores.turn_file import FileRow, Identity

_LOG = logging.getLogger("longmem.stores")
_ADVICE = (
    "What was dropped is gone from the sessions but not yet from this file; free space or fix the"
    " disk, and it goes when the store is next opened for writing."
)


@dataclass(frozen=True)
class Trim:
    """A file that holds more than any session needs, and what its successor is to hold."""

    key: int
    file: FileRow
    identity: Identity


def trim_files(database: Database, folder: Folder, store: str, changed: Callable[[], None]) -> None:
    """Work off the trim queue. The caller keeps sessions from being opened or forked meanwhile.

    Args:
        changed: called when sessions name other files, before the old ones are unlinked.

    Raises:
        StoreError: a file cannot be written or, `CorruptDataError`, read; it stays queued, and the
            others were trimmed.
    """
    with database.transaction() as rows:
        queued = [row["file"] for row in rows.execute("SELECT file FROM trim_queue")]
    failed: StoreError | None = None
    for key in queued:
        try:
            while not _settled(database, folder, store, key, changed):
                pass  # somebody rolled back, merged or deleted while the file was written
        except StoreError as error:
            failed = failed or error
    if failed is not None:
        raise failed


def trim_if_possible(
    database: Database, folder: Folder, store: str, changed: Callable[[], None]
) -> None:
    """As `trim_files`; a full disk or a damaged file is logged, and keeps nobody from going on."""
    try:
        trim_files(database, folder, store, changed)
    except StoreError as error:
        _LOG.warning("a file holds more than its sessions need, until it can be trimmed: %s", error)


def write_beginning(path: Path, file: TurnFile, row: FileRow, identity: Identity) -> FileRow:
    """Write and fsync the first commits of a merged file.

    Args:
        row: of the merged file.
        identity: of the file to write: how many commits, and where the last of them stops.
    """
    index = CommitIndex.load(file.tensor(INDEX))
    kept = index.rows(identity.commits - 1)
    counts = {f"blocks.{name}": count for name, count in kept.items()}
    counts |= {name: identity.stop - identity.start for name in file.entries("kv.")}
    tensors = {name: file.rows(name, [(0, count)])[0] for name, count in counts.items()}
    tensors |= index.beginning(identity.commits, file.tensor(STATES))
    return replace(turn_file.write(path, tensors, identity), kv=row.kv)


def _settled(
    database: Database, folder: Folder, store: str, key: int, changed: Callable[[], None]
) -> bool:
    """Do what is to be done about a queued file; False if that changed meanwhile."""
    with database.transaction() as rows:
        trim = _trim_of(rows, key, store)
    return trim is None or _trimmed(database, folder, trim, changed)


def _trim_of(rows: sqlite3.Connection, key: int, store: str) -> Trim | None:
    """What is to be done about a queued file; None, and it leaves the queue, if nothing is."""
    found = rows.execute("SELECT * FROM files WHERE key = ?", (key,)).fetchone()
    longest = rows.execute(
        """SELECT count(*) AS commits, max(stop) AS stop FROM commits WHERE file = ?
           GROUP BY session ORDER BY commits DESC LIMIT 1""",
        (key,),
    ).fetchone()
    if found is None or longest is None or longest["commits"] >= found["commits"]:
        rows.execute("DELETE FROM trim_queue WHERE file = ?", (key,))
        return None
    file = file_of(found, store)
    identity = replace(
        file.identity,
        stop=longest["stop"],
        commits=longest["commits"],
        format=Identity.format,
    )
    return Trim(key, file, identity)


def _trimmed(database: Database, folder: Folder, trim: Trim, changed: Callable[[], None]) -> bool:
    """Write the shorter file and put it in place; False if the sessions' commits changed meanwhile."""
    source = folder.open_fresh(trim.file)
    file = folder.place(
        lambda path: write_beginning(path, source, trim.file, trim.identity),
        trim.identity.session,
        _ADVICE,
    )
    try:
        with database.transaction() as rows:
            now = _trim_of(rows, trim.key, trim.identity.store)
            if now == trim:
                _replace(rows, trim, file)
    except BaseException:
        folder.abandon(file.name)
        with suppress(StoreError):
            changed()  # an interrupt may have come when COMMIT was through
        raise
    if now != trim:
        folder.unlink([file.name])
        return False
    changed()
    return True


def _replace(rows: sqlite3.Connection, trim: Trim, file: FileRow) -> None:
    """Let commits name `file`, and queue the one that it replaces for unlinking."""
    key = insert_file(rows, file, time.time())
    rows.execute(
        """UPDATE sessions SET bytes = bytes + ?
           WHERE key IN (SELECT session FROM commits WHERE file = ?)""",
        (file.size - trim.file.size, trim.key),
    )
    rows.execute("UPDATE commits SET file = ? WHERE file = ?", (key, trim.key))
    rows.execute("INSERT OR IGNORE INTO unlink_queue(name) VALUES (?)", (trim.file.name,))
    rows.execute("DELETE FROM files WHERE key = ?", (trim.key,))
