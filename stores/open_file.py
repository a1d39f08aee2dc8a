"""Reading a turn file: every byte that is served was held against its checksum."""

from __future__ import annotations

import os
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from longmem.errors import CorruptDataError, StoreError
from longmem.stores.commit_index import INDEX, STATES, CommitIndex
from longmem.stores.header import Entry, entries_of, metadata_of
from longmem.stores.pread import read_at, read_header
from longmem.stores.turn_file import FileRow


class TurnFile:
    """An open turn file whose header has been checked.

    Raises:
        CorruptDataError: here and in every reading method: the file is missing, short, foreign or
            fails a checksum.
    """

    def __init__(self, path: Path, row: FileRow) -> None:
        self._fd = -1
        self._row = row
        self._crcs = array("I", row.checksums)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._corrupt("is missing") from None
        except OSError as error:
            raise StoreError(f"cannot open {path}: {error.strerror}") from error
        identity = row.identity
        raw = self._checked_header()
        self._entries = entries_of(raw, identity.chunk_rows, identity.block_piece)

    def __del__(self) -> None:
        # Closed with the last reference and not by the cache that drops it, because another
        # thread may be reading from it at that moment.
        if self._fd >= 0:
            os.close(self._fd)

    def entries(self, prefix: str | tuple[str, ...]) -> dict[str, Entry]:
        """The tensors whose name starts with (one) `prefix`, in file order."""
        return {name: entry for name, entry in self._entries.items() if name.startswith(prefix)}

    def tensor(self, name: str) -> Tensor:
        """One whole tensor."""
        entry = self._entries[name]
        return _as_tensor(self.data(name), entry.dtype, entry.shape)

    def rows(self, name: str, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Rows ``start .. stop`` of one tensor per span, counted from the file's first.

        Reads and checks whole pieces, but only those that hold one of the rows, each once; pieces
        next to each other in one read. The tensors may share memory.
        """
        entry = self._entry(name, spans)
        ranges = [entry.covering(start, stop) for start, stop in spans if stop > start]
        slabs = [(first, self._slab(entry, first, last)) for first, last in _joined(ranges)]
        return [_cut(entry, slabs, start, stop) for start, stop in spans]

    def data(self, name: str) -> bytearray:
        """The bytes of one whole tensor."""
        entry = self._entries[name]
        return self._checked(entry, 0, entry.pieces)

    def block_rows(self, commits: int) -> dict[str, int]:
        """Rows of each append-only tensor that the first `commits` commits in the file have."""
        if commits < self._row.identity.commits:
            return CommitIndex.load(self.tensor(INDEX)).rows(commits - 1)
        entries = self.entries("blocks.")
        return {name.removeprefix("blocks."): entry.shape[0] for name, entry in entries.items()}

    def state(self, commit: int) -> dict[str, Tensor]:
        """The state that commit number `commit` of the file, from 0, left."""
        # clone: memory of torch's own, aligned as tensors that were never stored
        if INDEX not in self._entries:
            names = self.entries("state.")
            return {name.removeprefix("state."): self.tensor(name).clone() for name in names}
        places = CommitIndex.load(self.tensor(INDEX)).places(commit)
        spans = [(start, stop) for _, _, start, stop in places.values()]
        found = zip(places.items(), self.rows(STATES, spans), strict=True)
        return {
            name: data.clone().view(dtype).reshape(shape)
            for (name, (dtype, shape, _, _)), data in found
        }

    def check(self) -> None:
        """Read the whole file against its checksums, a piece at a time."""
        for entry in self._entries.values():
            for piece in range(entry.pieces):
                self._checked(entry, piece, piece + 1)

    def _entry(self, name: str, spans: Sequence[tuple[int, int]]) -> Entry:
        """A tensor that holds all these rows."""
        entry = self._entries.get(name)
        if name.startswith("kv.") and not self._row.kv:
            identity = self._row.identity
            raise StoreError(
                f"session {identity.session!r}: the K/V rows of tokens {identity.start} to"
                f" {identity.stop} were dropped when its files were merged; rebuild it (rebuild=True)"
            )
        for start, stop in spans:
            if entry is None or not 0 <= start <= stop <= entry.shape[0]:
                raise self._corrupt(f"does not hold rows {start} to {stop} of {name}")
        if entry is None:
            raise self._corrupt(f"does not hold {name}")
        return entry

    def _slab(self, entry: Entry, first: int, last: int) -> Tensor:
        """All rows of the pieces ``first .. last``."""
        data = self._checked(entry, first, last)
        rows = len(data) // entry.row_bytes if entry.row_bytes else 0
        return _as_tensor(data, entry.dtype, (rows, *entry.shape[1:]))

    def _checked(self, entry: Entry, first: int, last: int) -> bytearray:
        """Bytes of the pieces ``first .. last`` of a tensor, each against its checksum."""
        size = entry.piece_bytes
        low, high = first * size, min(last * size, entry.nbytes)
        data = self._read(entry.offset + low, high - low)
        with memoryview(data) as view:
            for number, piece in enumerate(_split(view, size), entry.first + first):
                if zlib.crc32(piece) != self._crcs[number]:
                    raise self._corrupt("fails its checksum")
        return data

    def _checked_header(self) -> bytes:
        size = os.fstat(self._fd).st_size
        if size != self._row.size:
            raise self._corrupt(f"has {size} bytes instead of {self._row.size}")
        try:
            raw = read_header(self._fd, size)
            metadata = metadata_of(raw)
        except (ValueError, EOFError):
            raise self._corrupt("has an unreadable header") from None
        if metadata != self._row.identity.metadata():
            owner, store = metadata.get("session"), metadata.get("store")
            raise self._corrupt(f"says it was written for session {owner!r} of store {store!r}")
        if zlib.crc32(raw) != self._crcs[0]:
            raise self._corrupt("fails its checksum")
        return raw

    def _read(self, offset: int, size: int) -> bytearray:
        try:
            return read_at(self._fd, offset, size)
        except EOFError:
            raise self._corrupt("ends too early") from None
        except OSError as error:
            raise StoreError(f"cannot read file {self._row.name}: {error.strerror}") from error

    def _corrupt(self, what: str) -> CorruptDataError:
        return CorruptDataError(
            f"session {self._row.identity.session!r}: file {self._row.name} {what}. Restore it from"
            " a backup, or rebuild the session from its recorded tokens (rebuild=True)."
        )


def _joined(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The ranges in order, those that overlap or touch made one."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _cut(entry: Entry, slabs: list[tuple[int, Tensor]], start: int, stop: int) -> Tensor:
    """Rows ``start .. stop`` out of the slab that holds them; slabs are (first piece, rows)."""
    if start == stop:
        return torch.empty((0, *entry.shape[1:]), dtype=entry.dtype)
    first, _ = entry.covering(start, stop)
    at = bisect_right(slabs, first, key=lambda slab: slab[0]) - 1
    before = slabs[at][0] * entry.piece_rows
    return slabs[at][1][start - before : stop - before]


def _split(view: memoryview, size: int) -> Iterator[memoryview]:
    return (view[at : at + size] for at in range(0, len(view), size))


def _as_tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
