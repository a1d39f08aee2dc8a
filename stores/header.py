"""The header of a safetensors file: 8 bytes of length, JSON, then the tensors back to back.

longmem parses it itself because checksums need byte ranges: safetensors' own readers hand out
tensors and have no checksum, so a flipped bit or a zeroed tail would load silently.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
"""safetensors' name of each dtype a turn file can hold."""


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies and which checksums cover it.

    Args:
        offset, nbytes: byte range in the file.
        first: index of its first checksum in the file's list.
        piece_bytes: bytes under one checksum; the last piece may be shorter.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    first: int
    piece_bytes: int

    @property
    def pieces(self) -> int:
        """Number of checksums; none for a tensor without elements."""
        return -(-self.nbytes // self.piece_bytes) if self.nbytes else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one row along dim 0."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def piece_rows(self) -> int:
        """Rows under one checksum."""
        return self.piece_bytes // self.row_bytes if self.row_bytes else 1

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """Pieces ``first .. last`` that hold rows ``start .. stop``."""
        if not self.row_bytes:
            return 0, 0
        return start // self.piece_rows, -(-stop // self.piece_rows)


def metadata_of(raw: bytes) -> dict[str, str]:
    """The metadata in a header.

    Raises:
        ValueError: it is not a safetensors header.
    """
    metadata = _parse(raw).get("__metadata__")
    if not isinstance(metadata, dict):
        raise ValueError("no metadata")
    return metadata


def entries_of(raw: bytes, chunk_rows: int, block_piece: int | None = None) -> dict[str, Entry]:
    """Every tensor of a header, in file order.

    Args:
        chunk_rows: rows of a K/V tensor under one checksum.
        block_piece: bytes of an append-only tensor, or of what a merged file keeps of its commits,
            under one checksum; None: all of them.
    """
    tensors = [(name, spec) for name, spec in _parse(raw).items() if name != "__metadata__"]
    tensors.sort(key=lambda item: item[1]["data_offsets"])
    entries: dict[str, Entry] = {}
    first = 1  # checksum 0 is the header's own
    for name, spec in tensors:
        begin, end = spec["data_offsets"]
        shape, dtype = tuple(spec["shape"]), DTYPES[spec["dtype"]]
        piece = piece_bytes(name, shape, dtype, chunk_rows, block_piece)
        entries[name] = Entry(dtype, shape, len(raw) + begin, end - begin, first, piece)
        first += entries[name].pieces
    return entries


def piece_bytes(
    name: str, shape: Sequence[int], dtype: torch.dtype, chunk_rows: int, block_piece: int | None
) -> int:
    """Bytes of a tensor under one checksum, at least 1; arguments as of `entries_of`."""
    row = math.prod(shape[1:]) * dtype.itemsize
    piece = row * (shape[0] if shape else 1)
    if name.startswith("kv."):
        piece = chunk_rows * row
    elif name.startswith(("blocks.", "commits.")) and block_piece is not None and row:
        piece = max(block_piece // row, 1) * row
    return max(piece, 1)


def _parse(raw: bytes) -> dict[str, Any]:
    parsed = json.loads(raw[8:])
    if not isinstance(parsed, dict):
        raise ValueError("header is no JSON object")
    return parsed
