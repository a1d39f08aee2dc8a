"""Which of a session's files holds which commits, token positions and rows of append-only tensors."""

from __future__ import annotations

import sqlite3
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from longmem.stores.rows import file_of
from longmem.stores.turn_file import FileRow


@dataclass(frozen=True)
class Extent:
    """What a session has of one file.

    Args:
        start, stop: absolute token positions.
        first, last: numbers of the commits, from 1, both inclusive.
    """

    start: int
    stop: int
    first: int
    last: int
    file: FileRow

    @property
    def commits(self) -> int:
        """How many commits of the file belong to the session."""
        return self.last - self.first + 1


_LAST = """(SELECT max(d.seq) FROM commits d
               WHERE d.file = c.file AND d.session = :key AND d.seq <= :head)"""
"""SQL for the last commit that the session has in the file of its commit `c`."""

BlockRows = Callable[[Extent], Mapping[str, int]]
"""Rows of each append-only tensor that an extent adds to the session."""


@dataclass
class Files:
    """A session's files in commit order; grows at its end while other threads search it."""

    extents: list[Extent] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)
    _edges: dict[str, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def head(self) -> int:
        """Number of the last commit that has a file."""
        return self.extents[-1].last if self.extents else 0

    def append(self, extent: Extent) -> None:
        """Add what follows."""
        self.extents.append(extent)
        self._starts.append(extent.start)  # last: readers in other threads search it

    def pieces(self, start: int, stop: int) -> Iterator[tuple[Extent, int, int]]:
        """(extent, from, to): which holds which of the positions; ends early at a gap."""
        at = max(bisect_right(self._starts, start) - 1, 0)
        while start < stop and at < len(self._starts) and self._starts[at] <= start:
            end = min(stop, self.extents[at].stop)
            if end > start:
                yield self.extents[at], start, end
                start = end
            at += 1

    def block_edges(self, name: str, rows_of: BlockRows) -> list[int]:
        """Rows of an append-only tensor before each extent, and behind the last."""
        with self._lock:
            edges = self._edges.setdefault(name, [0])
            for extent in self.extents[len(edges) - 1 : len(self._starts)]:
                edges.append(edges[-1] + rows_of(extent).get(name, 0))
            return edges

    def block_pieces(
        self, name: str, start: int, stop: int, rows_of: BlockRows
    ) -> Iterator[tuple[Extent, int, int]]:
        """(extent, from, to): which holds which rows of an append-only tensor."""
        edges = self.block_edges(name, rows_of)
        at = bisect_right(edges, start) - 1
        while start < stop and at < len(edges) - 1:
            end = min(stop, edges[at + 1])
            if end > start:
                yield self.extents[at], start - edges[at], end - edges[at]
                start = end
            at += 1


def load_files(rows: sqlite3.Connection, key: int, head: int, store: str) -> Files:
    """The files of a session's first `head` commits, in commit order.

    From file to file: a merged session of many thousand commits has a few hundred. A file may hold
    more commits than the session has of it, because another session shares it.
    """
    files = Files()
    for row in rows.execute(
        f"""WITH RECURSIVE held(seq, start, file, origin, last) AS (
             SELECT c.seq, c.start, c.file, c.origin, {_LAST} FROM commits c
             WHERE c.session = :key AND c.seq = 1 AND c.seq <= :head
             UNION ALL
             SELECT c.seq, c.start, c.file, c.origin, {_LAST} FROM held
             JOIN commits c ON c.session = :key AND c.seq = held.last + 1 WHERE c.seq <= :head)
           SELECT f.*, held.seq AS first_seq, held.start AS first, held.origin AS origin,
             last.seq AS last_seq, last.stop AS last FROM held JOIN files f ON f.key = held.file
           JOIN commits last ON last.session = :key AND last.seq = held.last
           ORDER BY held.seq""",
        {"key": key, "head": head},
    ):
        file = file_of(row, store, row["origin"])
        files.append(Extent(row["first"], row["last"], row["first_seq"], row["last_seq"], file))
    return files
