"""Merging a session's small files into larger ones while the session is in use.

As safe as a commit: the merged file is written in tmp/, fsynced and renamed; then one transaction
lets the commits name it, and queues the old files for unlinking. Only that transaction keeps
commits waiting. Readers that hold an old file open go on; others find that it is gone and look
again (`longmem.stores.claimed`).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from longmem.errors import StaleWriterError
from longmem.store import SessionInfo
from longmem.stores.claim import Claim
from longmem.stores.files import Extent, Files
from longmem.stores.header import DTYPES
from longmem.stores.merged_file import CHUNK_ROWS
from longmem.stores.rows import insert_file
from longmem.stores.turn_file import FileRow, Identity

MERGE_BYTES = 1 << 24
"""K/V bytes of a merged file, by default: a session of 4 GiB then has some 250 of them."""

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


def next_run(
    claim: Claim, upto: int, least: int, *, drop_kv: bool = False, keep: int = 0
) -> list[Extent]:
    """Neighbouring files that are worth a merge: of at least `least` bytes of K/V, or fewer where a
    large file follows, so that no more will join them; none if there are no such files.

    Files that hold `least` bytes by themselves stay as they are, but for K/V that may be dropped.

    Args:
        upto, drop_kv, keep: as of `longmem.store.SessionHandle.merge`.
    """
    row = row_bytes(claim.info)
    run: list[Extent] = []
    held = 0
    for extent in claim.files.extents:
        if extent.stop > upto:
            return []
        size = (extent.stop - extent.start) * row
        merged = extent.file.identity.commits > 1 or not extent.file.kv
        if merged or size >= least:
            if len(run) > 1:
                return run
            if not merged and drop_kv and not _stays(extent, keep):
                return [extent]
            run, held = [], 0
            continue
        run.append(extent)
        held += size
        if held >= least:
            return run
    return []


def row_bytes(info: SessionInfo) -> int:
    """Bytes of one token's K/V in all layers."""
    return sum(2 * heads * dim for heads, dim in info.layout) * _DTYPES[info.dtype].itemsize


def keeps_kv(run: Sequence[Extent], drop_kv: bool, keep: int) -> bool:
    """Whether the file that replaces `run` holds its K/V rows."""
    return not drop_kv or _stays(run[0], keep)


def identity_of(session_id: str, run: Sequence[Extent]) -> Identity:
    """The identity of the file that replaces `run`."""
    return replace(
        run[0].file.identity,
        session=session_id,
        start=run[0].start,
        stop=run[-1].stop,
        chunk_rows=CHUNK_ROWS,
        format=Identity.format,
        commits=len(run),
    )


def replace_files(
    rows: sqlite3.Connection, claim: Claim, run: Sequence[Extent], file: FileRow
) -> None:
    """Let the commits of `run` name `file`, and queue the files that nobody names any more.

    Raises:
        StaleWriterError: the session is no longer as the claim has it.
    """
    names = [row["name"] for row in _named(rows, claim, run)]
    if names != [extent.file.name for extent in run]:
        raise stale(claim.info)
    span = (claim.key, run[0].first, run[-1].last)
    key = insert_file(rows, file, time.time())
    rows.execute(
        """UPDATE commits SET file = ?, origin = NULL
           WHERE session = ? AND seq BETWEEN ? AND ?""",
        (key, *span),
    )
    unnamed = """name = ? AND NOT EXISTS (SELECT 1 FROM commits c WHERE c.file = files.key)"""
    old = [(name,) for name in names]
    rows.executemany(
        f"INSERT OR IGNORE INTO unlink_queue(name) SELECT name FROM files WHERE {unnamed}", old
    )
    rows.executemany(f"DELETE FROM files WHERE {unnamed}", old)
    saved = sum(extent.file.size for extent in run) - file.size
    rows.execute("UPDATE sessions SET bytes = bytes - ? WHERE key = ?", (saved, claim.key))


def merged(files: Files, run: Sequence[Extent], file: FileRow) -> Files:
    """`files` with one file in place of those of `run`."""
    one = Extent(run[0].start, run[-1].stop, run[0].first, run[-1].last, file)
    at = files.extents.index(run[0])
    after = Files()
    for extent in _with(files.extents, at, len(run), one):
        after.append(extent)
    return after


def stale(info: SessionInfo) -> StaleWriterError:
    """The error of a merge that somebody else overtook."""
    return StaleWriterError(
        f"session {info.id!r}: another writer took it over or rebuilt it; nothing was merged"
    )


def _stays(extent: Extent, keep: int) -> bool:
    return extent.first == 1 or extent.start < keep


def _named(rows: sqlite3.Connection, claim: Claim, run: Sequence[Extent]) -> list[sqlite3.Row]:
    """The files of the run's commits, if the lease is still the claim's."""
    return rows.execute(
        """SELECT f.name FROM sessions s JOIN commits c ON c.session = s.key
           JOIN files f ON f.key = c.file
           WHERE s.key = ? AND s.lease_epoch = ? AND c.seq BETWEEN ? AND ? ORDER BY c.seq""",
        (claim.key, claim.epoch, run[0].first, run[-1].last),
    ).fetchall()


def _with(extents: Sequence[Extent], at: int, count: int, one: Extent) -> Iterable[Extent]:
    return [*extents[:at], one, *extents[at + count :]]
