"""Adapters' JSON documents, in the sessions' database."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

from longmem.errors import SessionNotFoundError, StoreReadOnlyError
from longmem.store import Record
from longmem.stores.database import Database
from longmem.stores.record_rows import insert_record, record_value
from longmem.stores.rows import find_session


class SQLiteRecords:
    """`longmem.records.Records` on SQLite; every call is one transaction.

    Raises:
        StoreReadOnlyError: a write to a store opened with ``read_only=True``.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def put(self, namespace: str, key: str, value: Any, *, session: str | None = None) -> None:
        """Store or replace; with `session`, the record is deleted together with that session."""
        self.apply([Record(namespace, key, value)], session=session)

    def apply(
        self,
        puts: Sequence[Record],
        deletes: Sequence[tuple[str, str]] = (),
        *,
        session: str | None = None,
    ) -> None:
        """Delete and store several records in one transaction, all of it or nothing."""
        self._writable()
        with self._database.transaction() as rows:
            if session is not None and puts and find_session(rows, session) is None:
                raise SessionNotFoundError(f"there is no session {session!r} to tie a record to")
            rows.executemany("DELETE FROM records WHERE namespace = ? AND key = ?", deletes)
            for record in puts:
                insert_record(rows, record, session)

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

    def list(
        self,
        namespace: str,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> builtins.list[tuple[str, Any]]:
        """(key, value) pairs whose key starts with `prefix`, ordered by key."""
        beyond, order = ("<", "DESC") if newest_first else (">", "ASC")
        bounds = [(">=", prefix), ("<", _behind(prefix)), (beyond, after)]
        given = [(sign, bound) for sign, bound in bounds if bound is not None]
        within = "".join(f" AND key {sign} ?" for sign, _ in given)
        with self._database.transaction() as rows:
            found = rows.execute(
                f"SELECT * FROM records WHERE namespace = ?{within} ORDER BY key {order} LIMIT ?",
                (namespace, *[bound for _, bound in given], -1 if limit is None else max(limit, 0)),
            ).fetchall()
        return [(row["key"], record_value(row)) for row in found]

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


def _behind(prefix: str) -> str | None:
    """The smallest text above all that start with `prefix`; None if there is none."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return None
    last = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if 0xD800 <= last <= 0xDFFF else last)
