"""One commit's tensors as an immutable safetensors file, every byte of it under a checksum.

``kv.{layer}`` ``[T, 2, H_kv, D]``, ``blocks.{name}`` and ``state.{name}``; the metadata says which
store, session and layout the file belongs to. The checksums lie in the database, not in the file,
so that a file swapped for an older or a foreign one of the same shape is found out too.
Files are read with ``pread``, never mapped: a file truncated under a mapping kills the process.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import TensorSpec, serialize_file
from torch import Tensor

from longmem.errors import CorruptDataError, StoreError
from longmem.stores.header import Entry, entries_of, metadata_of

FORMAT = "longmem-turns/1"
CHUNK_ROWS = 64
"""K/V rows under one checksum: a block of 20-128 rows then touches at most three of them."""

_FIRST_READ = 4096  # most headers fit, so that opening a file costs one read
_READ_SIZE = 1 << 24  # one pread call; Linux cuts reads off at 2 GiB anyway


@dataclass(frozen=True)
class Identity:
    """Whose file it is: written into the file and into the database, compared on every opening.

    Args:
        store, session: who wrote it.
        layout: hash of the K/V layout and dtype.
        start, stop: absolute token positions of its K/V rows.
    """

    store: str
    session: str
    layout: str
    start: int
    stop: int
    chunk_rows: int = CHUNK_ROWS

    def metadata(self) -> dict[str, str]:
        """The safetensors metadata of the file."""
        return {
            "format": FORMAT,
            "store": self.store,
            "session": self.session,
            "layout": self.layout,
            "start": str(self.start),
            "stop": str(self.stop),
            "chunk_rows": str(self.chunk_rows),
        }


@dataclass(frozen=True)
class FileRow:
    """What the database knows of one turn file.

    Args:
        size: bytes.
        checksums: CRC-32 values as uint32: the header's, then each tensor's pieces in file order.
    """

    name: str
    identity: Identity
    size: int
    checksums: bytes


def write(path: Path, tensors: Mapping[str, Tensor], identity: Identity) -> FileRow:
    """Write and fsync a turn file; returns what the database must remember of it.

    safetensors creates the file itself (``O_EXCL``, 0600, under a name of its own beside `path`).
    Checksums are taken from the tensors, not from the file, so that a write gone wrong shows.
    """
    dense = {name: _dense(tensor) for name, tensor in tensors.items()}
    serialize_file(
        {name: _spec(tensor) for name, tensor in dense.items()}, path, identity.metadata()
    )
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        size = os.fstat(fd).st_size
        raw = _read_header(fd, size)
    finally:
        os.close(fd)
    crcs = array("I", [zlib.crc32(raw)])
    for name, entry in entries_of(raw, identity.chunk_rows).items():
        crcs.extend(_crcs(dense[name], entry))
    return FileRow(path.name, identity, size, crcs.tobytes())


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
        self._entries = entries_of(self._checked_header(), row.identity.chunk_rows)

    def __del__(self) -> None:
        # Closed with the last reference and not by the cache that drops it, because another
        # thread may be reading from it at that moment.
        if self._fd >= 0:
            os.close(self._fd)

    def names(self, prefix: str) -> list[str]:
        """Names of the tensors that start with `prefix`."""
        return [name for name in self._entries if name.startswith(prefix)]

    def tensor(self, name: str) -> Tensor:
        """One whole tensor."""
        entry = self._entries[name]
        return _as_tensor(self._checked(entry, 0, entry.pieces), entry.dtype, entry.shape)

    def kv_rows(self, layer: int, start: int, stop: int) -> Tensor:
        """K/V rows ``[stop - start, 2, H_kv, D]`` at absolute positions ``start .. stop``.

        Reads and checks whole chunks, but only those that hold one of the rows.
        """
        entry, base = self._entries[f"kv.{layer}"], self._row.identity.start
        chunk = self._row.identity.chunk_rows
        if not base <= start <= stop <= base + entry.shape[0]:
            raise self._corrupt(f"does not hold the rows {start} to {stop}")
        first, last = (start - base) // chunk, -(-(stop - base) // chunk)
        low, high = first * chunk, min(last * chunk, entry.shape[0])
        data = self._checked(entry, first, last)
        rows = _as_tensor(data, entry.dtype, (high - low, *entry.shape[1:]))
        return rows[start - base - low : stop - base - low]

    def check(self) -> None:
        """Read the whole file against its checksums, a piece at a time."""
        for entry in self._entries.values():
            for piece in range(entry.pieces):
                self._checked(entry, piece, piece + 1)

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
            raw = _read_header(self._fd, size)
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
            return _read_at(self._fd, offset, size)
        except EOFError:
            raise self._corrupt("ends too early") from None
        except OSError as error:
            raise StoreError(f"cannot read file {self._row.name}: {error.strerror}") from error

    def _corrupt(self, what: str) -> CorruptDataError:
        return CorruptDataError(
            f"session {self._row.identity.session!r}: file {self._row.name} {what}. Restore it from"
            " a backup, or rebuild the session from its recorded tokens (rebuild=True)."
        )


def _dense(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()


def _spec(tensor: Tensor) -> TensorSpec:
    nbytes = tensor.numel() * tensor.element_size()
    pointer = tensor.data_ptr() or 1  # never read: only tensors without elements have none
    name = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(dtype=name, shape=list(tensor.shape), data_ptr=pointer, data_len=nbytes)


def _crcs(tensor: Tensor, entry: Entry) -> Iterator[int]:
    if entry.nbytes:
        view = tensor.reshape(-1).view(torch.uint8).numpy().data
        yield from (zlib.crc32(piece) for piece in _split(view, entry.piece_bytes))


def _split(view: memoryview, size: int) -> Iterator[memoryview]:
    return (view[at : at + size] for at in range(0, len(view), size))


def _as_tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)


def _read_header(fd: int, size: int) -> bytes:
    head = _read_at(fd, 0, min(_FIRST_READ, size))
    stop = 8 + int.from_bytes(head[:8], "little")
    if stop > size:
        raise EOFError
    if stop > len(head):
        head = _read_at(fd, 0, stop)
    return bytes(head[:stop])


def _read_at(fd: int, offset: int, size: int) -> bytearray:
    """Exactly `size` bytes; a short read raises EOFError instead of passing unnoticed."""
    data = bytearray(size)
    done = 0
    while done < size:
        piece = os.pread(fd, min(size - done, _READ_SIZE), offset + done)
        if not piece:
            raise EOFError
        data[done : done + len(piece)] = piece
        done += len(piece)
    return data
