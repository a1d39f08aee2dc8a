"""One commit's tensors as an immutable safetensors file, every byte of it under a checksum.

``kv.{layer}`` ``[T, 2, H_kv, D]``, ``blocks.{name}`` and ``state.{name}``; the metadata says which
store, session and layout the file belongs to. The checksums lie in the database, not in the file,
so that a file swapped for an older or a foreign one of the same shape is found out too.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import TensorSpec, serialize_file
from torch import Tensor

from longmem.stores.header import Entry, entries_of
from longmem.stores.pread import read_header

FORMAT = 2
"""Since 2, append-only tensors have a checksum every `BLOCK_PIECE` bytes, not one each."""
CHUNK_ROWS = 64
"""K/V rows under one checksum: a block of 20-128 rows then touches at most three of them."""

BLOCK_PIECE = 1 << 14
"""Bytes of an append-only tensor under one checksum, whole rows; a row longer than that has its own."""


@dataclass(frozen=True)
class Identity:
    """Whose file it is: written into the file and into the database, compared on every opening.

    Args:
        store, session: who wrote it.
        layout: hash of the K/V layout and dtype.
        start, stop: absolute token positions of its K/V rows.
        chunk_rows: K/V rows under one checksum.
        format: of the file.
        commits: how many it holds.
    """

    store: str
    session: str
    layout: str
    start: int
    stop: int
    chunk_rows: int = CHUNK_ROWS
    format: int = FORMAT
    commits: int = 1

    @property
    def block_piece(self) -> int | None:
        """Bytes of an append-only tensor under one checksum; None: all of them."""
        return BLOCK_PIECE if self.format > 1 else None

    def metadata(self) -> dict[str, str]:
        """The safetensors metadata of the file."""
        commits = {"commits": str(self.commits)} if self.format > 1 else {}
        return {
            "format": f"longmem-turns/{self.format}",
            "store": self.store,
            "session": self.session,
            "layout": self.layout,
            "start": str(self.start),
            "stop": str(self.stop),
            "chunk_rows": str(self.chunk_rows),
            **commits,
        }


@dataclass(frozen=True)
class FileRow:
    """What the database knows of one turn file.

    Args:
        size: bytes.
        checksums: CRC-32 values as uint32: the header's, then each tensor's pieces in file order.
        blocks: rows of each append-only tensor in it; None for a file of format 1.
        kv: whether it holds K/V rows; a merge may have dropped them.
        origin: the session that wrote it, where the one that reads it was forked from that; None:
            the reading session itself.
    """

    name: str
    identity: Identity
    size: int
    checksums: bytes
    blocks: Mapping[str, int] | None = field(default=None, compare=False)
    kv: bool = True
    origin: str | None = field(default=None, compare=False)


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
        raw = read_header(fd, size)
    finally:
        os.close(fd)
    crcs = array("I", [zlib.crc32(raw)])
    for name, entry in entries_of(raw, identity.chunk_rows, identity.block_piece).items():
        crcs.extend(_crcs(dense[name], entry))
    blocks = {
        name.removeprefix("blocks."): len(tensor)
        for name, tensor in dense.items()
        if name.startswith("blocks.")
    }
    return FileRow(path.name, identity, size, crcs.tobytes(), blocks)


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
