"""Running totals of what sessions, owners and a store hold, kept by the database itself.

``sessions.bytes`` and ``sessions.row_bytes`` are what a session's files and rows count,
``usage`` has one total per owner and one for the store. Triggers move the totals in the transaction
that moves rows (commit, deletion, rebuild, merge of files), so that a crash undoes both, and a
commit is charged in a time that does not depend on how much there is. What counts stands in
`longmem.stores.quota`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from longmem.errors import StaleWriterError
from longmem.store import Problem, SessionInfo
from longmem.stores.claim import Claim
from longmem.stores.database import Database
from longmem.stores.quota import (
    ROW_BYTES,
    Limits,
    TurnValues,
    Usage,
    check_limits,
    file_bytes,
    turn_bytes,
)
from longmem.stores.turn_file import Identity
from longmem.stores.usage_schema import ROW, session_count, turn_count

_RECOUNTED = f"""
    SELECT s.id, s.bytes + s.row_bytes AS charged,
      (SELECT coalesce(sum(f.bytes), 0) FROM files f
       WHERE f.key IN (SELECT c.file FROM commits c WHERE c.session = s.key))
      + {session_count("s")}
      + (SELECT {ROW} * count(*) FROM commits c WHERE c.session = s.key)
      + (SELECT coalesce(sum({turn_count("t")}), 0) FROM turns t WHERE t.session = s.key) AS held
    FROM sessions s
"""
_TOTALS = """
    SELECT u.scope, u.owner, u.bytes AS charged,
      (SELECT coalesce(sum(s.bytes + s.row_bytes), 0) FROM sessions s
       WHERE u.scope = 'store' OR s.owner = u.owner) AS held
    FROM usage u
"""


def charge(
    rows: sqlite3.Connection, key: int, info: SessionInfo, limits: Limits, shared: int = 0
) -> SessionInfo:
    """`info` with what its session counts now; called when its rows are in, before COMMIT.

    Args:
        key: the session's row.
        info: the session as it was charged last.
        shared: see `longmem.stores.quota.Usage.without`.

    Raises:
        StoreFullError: with those rows in, a limit is exceeded; the caller's transaction undoes them.
    """
    used = used_by(rows, key)
    needed = used.session - info.charged
    limits.check(info, Usage(*(held - needed for held in used)).without(shared), needed)
    return replace(info, charged=used.session)


def check_room(
    database: Database,
    claim: Claim,
    limits: Limits,
    tensors: Mapping[str, Tensor],
    identity: Identity,
    turns: Sequence[TurnValues],
) -> None:
    """Refuse a commit that would not fit, before anything of it is written.

    Raises:
        StoreFullError: a limit would be exceeded.
    """
    if not limits.bind(claim.info):
        return
    needed = file_bytes(tensors, identity.metadata()) + turn_bytes(turns) + ROW_BYTES
    with database.transaction() as rows:
        limits.check(claim.info, used_by(rows, claim.key).without(claim.shared), needed)


def limited(database: Database, claim: Claim, max_bytes: int | None, ttl: float | None) -> Claim:
    """`claim` with other limits, kept in the session's row unless the store is read-only.

    Raises:
        ConfigError: a value is not positive.
        StaleWriterError: head or lease epoch is no longer the claim's.
    """
    check_limits(max_bytes, ttl)
    after = replace(claim.info, max_bytes=max_bytes, ttl=ttl)
    if after != claim.info and not database.read_only:
        with database.transaction() as rows:
            cursor = rows.execute(
                """UPDATE sessions SET max_bytes = ?, ttl = ?
                   WHERE key = ? AND head = ? AND lease_epoch = ?""",
                (max_bytes, ttl, claim.key, claim.info.head, claim.epoch),
            )
            if cursor.rowcount != 1:
                raise StaleWriterError(
                    f"session {claim.info.id!r}: another writer took it over or deleted it; its"
                    " limits stay as they are. Close the session and open it again."
                )
    return replace(claim, info=after)


def used_by(rows: sqlite3.Connection, key: int) -> Usage:
    """What a session, its owner and the store hold; of a session that is gone, nothing."""
    row = rows.execute(
        """SELECT s.bytes + s.row_bytes AS session, o.bytes AS owner, u.bytes AS store
           FROM sessions s JOIN usage u ON u.scope = 'store' AND u.owner = ''
           LEFT JOIN usage o ON o.scope = 'owner' AND o.owner = s.owner WHERE s.key = ?""",
        (key,),
    ).fetchone()
    return Usage(0, 0, 0) if row is None else Usage(row["session"], row["owner"] or 0, row["store"])


def check_totals(rows: sqlite3.Connection) -> Iterator[Problem]:
    """Totals that are not what the rows sum up to. Only a change from outside can bring that about."""
    for row in rows.execute(f"SELECT * FROM ({_RECOUNTED}) WHERE charged <> held").fetchall():
        yield Problem(row["id"], None, _wrong(row))
    for row in rows.execute(f"SELECT * FROM ({_TOTALS}) WHERE charged <> held").fetchall():
        whose = "the store" if row["scope"] == "store" else f"owner {row['owner']!r}"
        yield Problem(None, None, f"{whose}: {_wrong(row)}")


def _wrong(row: sqlite3.Row) -> str:
    return (
        f"charged with {row['charged']:,} bytes, but holds {row['held']:,}; restore the database from"
        " a backup"
    )
