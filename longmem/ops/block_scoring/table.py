"""Where the block indexes of several sessions lie, as kernels read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class IndexRow(NamedTuple):
    """The index of one layer of one session; a row of a table ``[S, 6]`` int64 on the device.

    Blocks are numbered as in the session's stream.

    Args:
        keys: address of ``[H_kv, room, D]``, its rows, on a multiple of 16 bytes.
        starts: address of int32, the first row of each block held, and the end of the last.
        held: number of the first block held.
        first: oldest block that may be chosen.
        stop: the block behind the newest that may be chosen.
        room: rows there is memory for, per KV head.
    """

    keys: int
    starts: int
    held: int
    first: int
    stop: int
    room: int


class Bounds(NamedTuple):
    """What the indexes of a table will not exceed while it is in use; sizes grids and scratch, and changes
    no result.

    Args:
        blocks: candidates of a session.
        rows: rows of a block.
    """

    blocks: int
    rows: int


def table_of(rows: Sequence[IndexRow], device: torch.device) -> Tensor:
    """The rows as a table ``[S, 6]`` int64 on the device, without waiting for it."""
    table = torch.tensor(rows, dtype=torch.int64)
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)
