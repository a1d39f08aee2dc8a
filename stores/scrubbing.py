"""Leaving nothing of what was deleted to be found in the store's folder.

Deleting takes rows, files and the write-ahead log's content away at once (`secure_delete` overwrites
rows with zeros). What it leaves: words in the full-text index, where a deletion is only noted until
segments are merged; commits in files that are shared and cannot be trimmed at the moment; the free
pages' numbers and the slack of half-empty pages.

Who is promised that nothing is left has the scrub noted in the transaction that deletes: after a crash
in between it is made up for when the store is next opened for writing.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable

from longmem.errors import StoreError
from longmem.stores.database import Database
from longmem.stores.folder import Folder
from longmem.stores.removal import sweep, work_off_queue
from longmem.stores.search_index import clean_index
from longmem.stores.trimming import trim_files

_LOG = logging.getLogger(__name__)


def owe_scrub(rows: sqlite3.Connection) -> None:
    """Note that what this transaction deletes is to leave no trace."""
    rows.execute("INSERT OR IGNORE INTO meta(name, value) VALUES ('scrub', 'owed')")


def make_up_for_scrub(database: Database, folder: Folder, store: str) -> None:
    """On opening for writing: scrub if that was noted and did not happen. What stands in the way is
    logged, and keeps nobody from going on."""
    with database.transaction() as rows:
        owed = rows.execute("SELECT 1 FROM meta WHERE name = 'scrub'").fetchone()
    if owed:
        try:
            scrub(database, folder, store, lambda: None)
        except StoreError as error:
            _LOG.warning("traces of what was erased or forgotten may be left: %s", error)


def scrub(database: Database, folder: Folder, store: str, changed: Callable[[], None]) -> None:
    """Remove every trace. The caller keeps sessions from being opened or forked meanwhile.

    Args:
        changed: see `longmem.stores.trimming.trim_files`.

    Raises:
        StoreError: something stands in the way; what could be removed is.
    """
    try:
        trim_files(database, folder, store, changed)
    finally:
        work_off_queue(database, folder)
        sweep(database, folder)
        with database.transaction() as rows:
            clean_index(rows)
        database.vacuum()
    with database.transaction() as rows:
        rows.execute("DELETE FROM meta WHERE name = 'scrub'")
