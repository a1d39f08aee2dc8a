"""Rows of ``records``: what SQLite keeps of an adapter's document."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from longmem.errors import CorruptDataError, InputError
from longmem.store import Record
from longmem.stores.claim import Claim
from longmem.stores.rows import checksum, is_published, to_json


def insert_record(
    rows: sqlite3.Connection, record: Record, session: str | None, head: int | None = None
) -> None:
    """Insert or replace a record.

    Args:
        session, head: what it is tied to.

    Raises:
        InputError: its value is not JSON-able.
    """
    fixed = (record.namespace, record.key, to_json(record.value), session)
    rows.execute(
        """REPLACE INTO records(namespace, key, value, session, head, checksum)
           VALUES (?, ?, ?, ?, ?, ?)""",
        (*fixed, head, _checksum(*fixed, head)),
    )


def insert_records(
    rows: sqlite3.Connection, claim: Claim, head: int, records: Sequence[Record]
) -> None:
    """Insert the records of a commit.

    Raises:
        InputError: a value is not JSON-able, or the session is a stand-in.
    """
    if records and not is_published(rows, claim.key):
        raise InputError(
            f"session {claim.info.id!r}: a stand-in that is being rebuilt takes no records; nothing"
            " was written. Put them when it is published."
        )
    for record in records:
        insert_record(rows, record, claim.info.id, head)


def move_records(rows: sqlite3.Connection, session: str, heads: Mapping[int, int | None]) -> None:
    """Tie records of a session to the new numbers of their commits; those without one go."""
    found = rows.execute(
        "SELECT * FROM records WHERE session = ? AND head IS NOT NULL", (session,)
    ).fetchall()
    for row in found:
        head = heads.get(row["head"], row["head"])
        name = (row["namespace"], row["key"])
        if head is None:
            rows.execute("DELETE FROM records WHERE namespace = ? AND key = ?", name)
        elif head != row["head"]:
            rows.execute(
                "UPDATE records SET head = ?, checksum = ? WHERE namespace = ? AND key = ?",
                (head, _checksum(*name, row["value"], session, head), *name),
            )


def record_value(row: sqlite3.Row) -> Any:
    """The value of a row of ``records``.

    Raises:
        CorruptDataError: it fails its checksum.
    """
    fixed = (row["namespace"], row["key"], row["value"], row["session"])
    if _checksum(*fixed, row["head"]) != row["checksum"]:
        raise CorruptDataError(
            f"record {row['key']!r} of {row['namespace']!r} fails its checksum; restore the store"
            " from a backup"
        )
    return json.loads(row["value"])


def _checksum(namespace: str, key: str, value: str, session: str | None, head: int | None) -> int:
    """Of a record tied to no commit as before records could be."""
    fixed = (namespace, key, value, session)
    return checksum(*fixed) if head is None else checksum(*fixed, head)
