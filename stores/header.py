"""The header of a safetensors file: 8 bytes of length, JSON, then the tensors back to back.

longmem parses it itself because checksums need byte ranges: safetensors' own readers hand out
tensors and have no checksum, so a flipped bit or a zeroed tail would load silently.
"""

from __future__ import annotations

import json
import math
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


def metadata_of(raw: bytes) -> dict[str, str]:
    """The metadata in a header.

    Raises:
        ValueError: it is not a safetensors header.
    """
    metadata = _parse(raw).get("__metadata__")
    if not isinstance(metadata, dict):
        raise ValueError("no metadata")
    return metadata


def entries_of(raw: bytes, chunk_rows: int) -> dict[str, Entry]:
    """Every tensor of a header, in file order; K/V is checksummed per `chunk_rows` rows."""
    tensors = [(name, spec) for name, spec in _parse(raw).items() if name != "__metadata__"]
    tensors.sort(key=lambda item: item[1]["data_offsets"])
    entries: dict[str, Entry] = {}
    first = 1  # checksum 0 is the header's own
    for name, spec in tensors:
        entries[name] = _entry(name, spec, base=len(raw), first=first, chunk_rows=chunk_rows)
        first += entries[name].pieces
    return entries


def _entry(name: str, spec: dict[str, Any], *, base: int, first: int, chunk_rows: int) -> Entry:
    begin, end = spec["data_offsets"]
    shape, dtype = tuple(spec["shape"]), DTYPES[spec["dtype"]]
    piece = end - begin
    if name.startswith("kv."):
        piece = chunk_rows * math.prod(shape[1:]) * dtype.itemsize
    return Entry(dtype, shape, base + begin, end - begin, first, max(piece, 1))


def _parse(raw: bytes) -> dict[str, Any]:
    parsed = json.loads(raw[8:])
    if not isinstance(parsed, dict):
        raise ValueError("header is no JSON object")
    return parsed
