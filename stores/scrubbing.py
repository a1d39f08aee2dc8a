"""Leaving nothing of what was deleted to be found in the store's folder.

Deleting takes rows, files and the write-ahead log's content away at once (`secure_delete` overwrites
rows with zeros). What it leaves: words in the full-text index, where a deletion is only noted until
segments are merged; commits in files that are shared and cannot be trimmed at the moment; the free
pages' numbers and the slack of half-empty pages.
"""

from __future__ import annotations

from collections.abc import Callable

from longmem.stores.database import Database
from longmem.stores.folder import Folder
from longmem.stores.removal import sweep, work_off_queue
from longmem.stores.search_index import clean_index
from longmem.stores.trimming import trim_files


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
