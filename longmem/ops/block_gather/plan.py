"""What one gather or scatter moves: small tables on the device, made on the host in one upload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Move(NamedTuple):
    """One block of a plan.

    Args:
        address: where its payload begins, a multiple of 16; `RAW` added if it is raw under a codec.
        start: the row of the buffer where it begins.
        tokens: how many it has; 0 moves nothing.
        rank: by which its keys are turned.
    """

    address: int
    start: int
    tokens: int
    rank: int = 0


RAW = 1
"""Added to an address: the payload lies there as the model made it, though others are encoded."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Blocks to move, for all KV heads or for each its own.

    Args:
        addresses: ``[n]`` or ``[H_kv, n]`` int64, see `Move`.
        starts, counts, ranks: int32 of that shape, each contiguous.
        most: no block has more tokens; a bound the host knows, while counts may be known to the
            device alone.
    """

    addresses: Tensor
    starts: Tensor
    counts: Tensor
    ranks: Tensor
    most: int

    @classmethod
    def of(cls, moves: Sequence[Sequence[Move]], device: torch.device) -> Plan:
        """A plan of blocks for all heads (one row) or for each (H_kv rows, filled up with nothing).

        Nothing waits for the device: one small copy from pinned memory goes out on its stream.
        """
        n = max((len(row) for row in moves), default=0)
        nothing = Move(0, 0, 0)
        padded = [[*row, *[nothing] * (n - len(row))] for row in moves]
        flat = [move for row in padded for move in row]
        size = len(flat)
        words = torch.empty(3 * size, dtype=torch.int64, pin_memory=device.type == "cuda")
        words[:size] = torch.tensor([move.address for move in flat], dtype=torch.int64)
        small = [value for column in (1, 2, 3) for value in (move[column] for move in flat)]
        words[size:].view(torch.int32)[: 3 * size] = torch.tensor(small, dtype=torch.int32)
        there = words.to(device, non_blocking=True)
        shape = (n,) if len(moves) == 1 else (len(moves), n)
        starts, counts, ranks = there[size:].view(torch.int32)[: 3 * size].view(3, *shape)
        most = max((move.tokens for move in flat), default=0)
        return cls(there[:size].view(shape), starts, counts, ranks, most)

    @property
    def blocks(self) -> int:
        """n."""
        return self.addresses.shape[-1]

    @property
    def head_stride(self) -> int:
        """Entries from one KV head's row to the next; 0 where all share one."""
        return self.blocks if self.addresses.dim() == 2 else 0
