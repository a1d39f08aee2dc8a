"""Many commits' turn files as one: what a merge writes.

``kv.{layer}`` and ``blocks.{name}`` are those of the commits one behind the other. What each commit
left as state goes to ``commits.states``, a tensor that did not change since the commit before only
once; ``commits.index`` says where it lies and how many rows of each append-only tensor there were
by then, so that the session as of any commit can still be told.

The file is written tensor by tensor in place while the sources are read once, one after another:
of the keys and values no more than one source is in memory.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from longmem.errors import CorruptDataError
from longmem.stores.commit_index import CommitIndex
from longmem.stores.header import DTYPES, Entry, entries_of
from longmem.stores.open_file import TurnFile
from longmem.stores.turn_file import FileRow, Identity

CHUNK_ROWS = 32
"""K/V rows under one checksum: fewer than in a turn file, because a block is a small part of it."""

Shape = tuple[torch.dtype, tuple[int, ...]]
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_merged(
    path: Path,
    sources: Sequence[FileRow],
    opened: Callable[[FileRow], TurnFile],
    identity: Identity,
    *,
    kv: bool,
) -> FileRow:
    """Write and fsync one file in place of `sources`; returns what the database must remember.

    Args:
        sources: turn files that follow each other.
        opened: opens one of them; may raise to break off.
        kv: keep the K/V rows.

    Raises:
        CorruptDataError: a source is missing or altered.
    """
    index, shapes, rows = CommitIndex(), dict[str, Shape](), dict[str, int]()
    for source in sources:
        file = opened(source)
        _extend(shapes, file.entries(("kv.", "blocks.") if kv else "blocks."), identity)
        rows = _block_rows(shapes)
        index.add(file.state(0), rows)
    extra = index.tensors()
    shapes |= {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in extra.items()}
    header = _header(shapes, identity)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        columns = _columns(fd, header, identity)
        for name, tensor in extra.items():
            columns[name].append(tensor.numpy().data)
        for source in sources:
            file = opened(source)
            for name in [name for name in file.entries(("kv.", "blocks.")) if name in columns]:
                columns[name].append(memoryview(file.data(name)))
        os.fsync(fd)
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    crcs = array("I", [zlib.crc32(header)])
    for column in columns.values():
        crcs.extend(column.finished())
    return FileRow(path.name, identity, size, crcs.tobytes(), rows, kv)


@dataclass
class _Column:
    """One tensor of the file while it is being written."""

    fd: int
    entry: Entry
    crcs: list[int] = field(default_factory=list)
    _done: int = 0
    _crc: int = 0

    def append(self, data: memoryview) -> None:
        """Write what follows, and check it off piece by piece."""
        at = 0
        while at < len(data):
            at += os.pwrite(self.fd, data[at:], self.entry.offset + self._done + at)
        size = self.entry.piece_bytes
        while len(data):
            part = data[: size - self._done % size]
            self._crc = zlib.crc32(part, self._crc)
            self._done += len(part)
            if self._done % size == 0:
                self._close_piece()
            data = data[len(part) :]

    def finished(self) -> list[int]:
        """The checksums of all pieces."""
        assert self._done == self.entry.nbytes, "the sources changed while they were merged"
        if self._done % self.entry.piece_bytes:
            self._close_piece()
        return self.crcs

    def _close_piece(self) -> None:
        self.crcs.append(self._crc)
        self._crc = 0


def _extend(shapes: dict[str, Shape], entries: Mapping[str, Entry], identity: Identity) -> None:
    """Add the rows of one source's tensors to those of the sources before."""
    for name, entry in entries.items():
        dtype, shape = shapes.get(name, (entry.dtype, (0, *entry.shape[1:])))
        if (dtype, shape[1:]) != (entry.dtype, entry.shape[1:]):
            raise CorruptDataError(
                f"session {identity.session!r}: {name} has rows {tuple(shape[1:])} of {dtype} in one"
                f" commit and {tuple(entry.shape[1:])} of {entry.dtype} in another; rebuild it"
                " (rebuild=True)"
            )
        shapes[name] = (dtype, (shape[0] + entry.shape[0], *shape[1:]))


def _block_rows(shapes: Mapping[str, Shape]) -> dict[str, int]:
    return {
        name.removeprefix("blocks."): shape[0]
        for name, (_, shape) in shapes.items()
        if name.startswith("blocks.")
    }


def _header(shapes: Mapping[str, Shape], identity: Identity) -> bytes:
    """Length and JSON; wide dtypes come first, as safetensors orders them, so that all are aligned."""
    header: dict[str, object] = {"__metadata__": identity.metadata()}
    at = 0
    for name in sorted(shapes, key=lambda name: -shapes[name][0].itemsize):
        dtype, shape = shapes[name]
        stop = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _columns(fd: int, header: bytes, identity: Identity) -> dict[str, _Column]:
    """Write the header; where each tensor goes, in file order."""
    if os.pwrite(fd, header, 0) != len(header):
        raise OSError("short write")
    entries = entries_of(header, identity.chunk_rows, identity.block_piece)
    return {name: _Column(fd, entry) for name, entry in entries.items()}
