"""Database rows to the protocol's data classes and back."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
import zlib
from array import array
from typing import Any

from longmem.errors import CorruptDataError, InputError
from longmem.store import SessionInfo, Span, TurnRecord
from longmem.stores.turn_file import FileRow, Identity

_FIXED = ("id", "owner", "metadata", "fingerprint", "layout", "dtype", "created_at")
_TURN = ("idx", "role", "text", "ids", "start", "spans", "created_at", "extra")


def layout_id(info: SessionInfo) -> str:
    """Hash of what gives K/V bytes their meaning: per layer (H_kv, D), and the dtype."""
    return hashlib.sha256(to_json([info.layout, info.dtype]).encode()).hexdigest()[:16]


def checksum(*values: str | bytes | float | None) -> int:
    """CRC-32 over values and the borders between them."""
    crc = 0
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode()
        crc = zlib.crc32(b"%d:%b" % (len(data), data), crc)
    return crc


def insert_session(
    rows: sqlite3.Connection, info: SessionInfo, *, staged_for: str | None = None
) -> int:
    """Insert an empty session with lease epoch 1; returns its key."""
    fixed = (
        info.id,
        info.owner,
        to_json(info.metadata),
        to_json(info.fingerprint),
        to_json(info.layout),
        info.dtype,
        float(info.created_at),
    )
    born = (info.parent, info.parent_turn)
    cursor = rows.execute(
        """INSERT INTO sessions(id, owner, metadata, fingerprint, layout, dtype, created_at,
           checksum, parent, parent_turn, updated_at, staged_for, max_bytes, ttl, lease_epoch)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)""",
        (
            *fixed,
            _session_checksum(fixed, born),
            *born,
            info.updated_at,
            staged_for,
            info.max_bytes,
            info.ttl,
        ),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def find_session(rows: sqlite3.Connection, session_id: str) -> sqlite3.Row | None:
    """The row of a session; stand-ins that wait to be published apart."""
    found: sqlite3.Row | None = rows.execute(
        "SELECT * FROM sessions WHERE id = ? AND staged_for IS NULL", (session_id,)
    ).fetchone()
    return found


def session_by_key(rows: sqlite3.Connection, key: int) -> SessionInfo:
    """A session that is known to be there."""
    return session_of(session_row(rows, key))


def session_row(rows: sqlite3.Connection, key: int) -> sqlite3.Row:
    """The row of a session that is known to be there."""
    row: sqlite3.Row = rows.execute("SELECT * FROM sessions WHERE key = ?", (key,)).fetchone()
    return row


def is_published(rows: sqlite3.Connection, key: int) -> bool:
    """Whether a session is there and no stand-in: it never was one, or it took over."""
    found = rows.execute(
        "SELECT 1 FROM sessions WHERE key = ? AND staged_for IS NULL", (key,)
    ).fetchone()
    return found is not None


def session_of(row: sqlite3.Row) -> SessionInfo:
    """A row of ``sessions``.

    Raises:
        CorruptDataError: it fails its checksum.
    """
    fixed, born = tuple(row[name] for name in _FIXED), (row["parent"], row["parent_turn"])
    if _session_checksum(fixed, born) != row["checksum"]:
        raise CorruptDataError(
            f"session {row['id']!r}: its row fails its checksum; restore the store from a backup"
        )
    return SessionInfo(
        id=row["id"],
        owner=row["owner"],
        metadata=json.loads(row["metadata"]),
        fingerprint=json.loads(row["fingerprint"]),
        layout=tuple((heads, dim) for heads, dim in json.loads(row["layout"])),
        dtype=row["dtype"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        head=row["head"],
        n_turns=row["n_turns"],
        n_tokens=row["n_tokens"],
        bytes=row["bytes"],
        charged=row["bytes"] + row["row_bytes"],
        max_bytes=row["max_bytes"],
        ttl=row["ttl"],
        parent=row["parent"],
        parent_turn=row["parent_turn"],
    )


def insert_file(rows: sqlite3.Connection, file: FileRow, created_at: float) -> int:
    """Insert a file; returns its key."""
    identity = file.identity
    cursor = rows.execute(
        """INSERT INTO files(name, session, layout, start, stop, chunk_rows, format, bytes,
           checksums, blocks, commits, kv, created_at)
           VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            file.name,
            identity.session,
            identity.layout,
            identity.start,
            identity.stop,
            identity.chunk_rows,
            identity.format,
            file.size,
            file.checksums,
            to_json(file.blocks),
            identity.commits,
            file.kv,
            created_at,
        ),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def file_of(row: sqlite3.Row, store: str, origin: str | None = None) -> FileRow:
    """A row of ``files``.

    Args:
        origin: the session that wrote it, where that is not the one that reads it.
    """
    identity = Identity(
        store=store,
        session=row["session"],
        layout=row["layout"],
        start=row["start"],
        stop=row["stop"],
        chunk_rows=row["chunk_rows"],
        format=row["format"],
        commits=row["commits"],
    )
    return FileRow(
        name=row["name"],
        identity=identity,
        size=row["bytes"],
        checksums=row["checksums"],
        blocks=json.loads(row["blocks"]),
        kv=bool(row["kv"]),
        origin=origin,
    )


def turn_values(turn: TurnRecord) -> dict[str, str | bytes | float]:
    """Column values of a turn, its checksum among them.

    Raises:
        InputError: an id beyond int32, or `extra` that is not JSON.
    """
    try:
        ids = array("i", turn.ids)
    except (OverflowError, TypeError) as error:
        raise InputError(f"turn {turn.index}: token ids must be int32 ({error})") from None
    values: dict[str, str | bytes | float] = {
        "idx": turn.index,
        "role": turn.role,
        "text": turn.text,
        "ids": _little_endian(ids).tobytes(),
        "start": turn.start,
        "spans": to_json(turn.spans),
        "created_at": float(turn.created_at),
        "extra": to_json(turn.extra),
    }
    return {**values, "checksum": checksum(*values.values())}


def turn_of(row: sqlite3.Row, session: str) -> TurnRecord:
    """A row of ``turns``.

    Raises:
        CorruptDataError: it fails its checksum.
    """
    if checksum(*(row[name] for name in _TURN)) != row["checksum"]:
        raise CorruptDataError(
            f"session {session!r}: the record of turn {row['idx']} fails its checksum; restore"
            " the store from a backup"
        )
    ids = array("i")
    ids.frombytes(row["ids"])
    return TurnRecord(
        index=row["idx"],
        role=row["role"],
        text=row["text"],
        ids=tuple(_little_endian(ids)),
        start=row["start"],
        spans=tuple(_span_of(*span) for span in json.loads(row["spans"])),
        created_at=row["created_at"],
        extra=json.loads(row["extra"]),
    )


def to_json(value: Any) -> str:
    """Compact JSON.

    Raises:
        InputError: `value` is not JSON-able.
    """
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"cannot store {type(value).__name__} as JSON: {error}") from None


def _session_checksum(
    fixed: tuple[str | float | None, ...], born: tuple[str | None, int | None]
) -> int:
    """Of the columns that never change; of a session that is no fork as before there were any."""
    return checksum(*fixed) if born[0] is None else checksum(*fixed, *born)


def _span_of(tokens: int, leading: int, layers: list[int] | None = None) -> Span:
    return (tokens, leading) if layers is None else (tokens, leading, tuple(layers))


def _little_endian(ids: array[int]) -> array[int]:
    if sys.byteorder == "big":
        ids = ids[:]
        ids.byteswap()
    return ids
