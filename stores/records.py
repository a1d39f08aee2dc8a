"""Adapters' JSON documents, in the sessions' database."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from longmem.errors import CorruptDataError, SessionNotFoundError, StoreReadOnlyError
from longmem.stores.database import Database
from longmem.stores.rows import checksum, find_session, to_json


class SQLiteRecords:
    """`longmem.store.Records` on SQLite; every call is one transaction.

    Raises:
        StoreReadOnlyError: a write to a store opened with ``read_only=True``.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, namespace: str, key: str, value: Any, *, session: str | None = None) -> None:
        """Store or replace; with `session`, the record is deleted together with that session.

        Raises:
            SessionNotFoundError: there is no such session, so that the record would never go.
            InputError: `value` is not JSON-able.
        """
        self._writable()
        text = to_json(value)
        with self._database.transaction() as rows:
            if session is not None and find_session(rows, session) is None:
                raise SessionNotFoundError(f"there is no session {session!r} to tie a record to")
            rows.execute(
                """REPLACE INTO records(namespace, key, value, session, checksum)
                   VALUES (?, ?, ?, ?, ?)""",
                (namespace, key, text, session, checksum(namespace, key, text, session)),
            )

    def get(self, namespace: str, key: str) -> Any | None:
        """The value, or None.

        Raises:
            CorruptDataError: it fails its checksum.
        """
        with self._database.transaction() as rows:
            row = rows.execute(
                "SELECT * FROM records WHERE namespace = ? AND key = ?", (namespace, key)
            ).fetchone()
        return None if row is None else record_value(row)

    def list(self, namespace: str, prefix: str = "") -> list[tuple[str, Any]]:
        """(key, value) pairs whose key starts with `prefix`, ordered by key."""
        found = []
        with self._database.transaction() as rows:
            for row in rows.execute(
                "SELECT * FROM records WHERE namespace = ? AND key >= ? ORDER BY key",
                (namespace, prefix),
            ):
                if not row["key"].startswith(prefix):
                    break  # keys with one prefix are neighbours in byte order
                found.append((row["key"], record_value(row)))
        return found

    def delete(self, namespace: str, key: str) -> bool:
        """Delete; False if there was none."""
        self._writable()
        with self._database.transaction() as rows:
            cursor = rows.execute(
                "DELETE FROM records WHERE namespace = ? AND key = ?", (namespace, key)
            )
        return cursor.rowcount > 0

    def _writable(self) -> None:
        if self._database.read_only:
            raise StoreReadOnlyError(
                f"the store {self._database.path.parent} is open read-only; open it without"
                " read_only to write records"
            )


def record_value(row: sqlite3.Row) -> Any:
    """The value of a row of ``records``.

    Raises:
        CorruptDataError: it fails its checksum.
    """
    fixed = (row["namespace"], row["key"], row["value"], row["session"])
    if checksum(*fixed) != row["checksum"]:
        raise CorruptDataError(
            f"record {row['key']!r} of {row['namespace']!r} fails its checksum; restore the store"
            " from a backup"
        )
    return json.loads(row["value"])
