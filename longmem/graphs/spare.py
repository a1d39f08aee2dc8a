"""Rows for places of a graph that no session takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.graphs.rows import Row
from longmem.memory import LayerSpec

_ROOM = 16


@dataclass(frozen=True, eq=False)
class Spare:
    """A row whose session reads its own token alone, into a few rows of memory that nobody else reads.

    Args:
        row: for `Inputs.upload`, good for any number of steps, each of which is its first.
        held: that memory, kept alive.
    """

    row: Row
    held: Sequence[Tensor]

    @classmethod
    def of(cls, specs: Sequence[LayerSpec]) -> Spare:
        """One for a model with these layers; layers of one shape share their memory."""
        held: dict[tuple[int, int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        addresses = []
        for spec in specs:
            key = (spec.kv_heads, spec.dim, spec.dtype, spec.device)
            if key not in held:
                shape = (spec.kv_heads, _ROOM, spec.dim)
                kv = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
                held[key] = kv, torch.zeros(shape[:2], device=spec.device)
            kv, mass = held[key]
            addresses.append([kv.data_ptr()] * 5 + [mass.data_ptr()])
        kv_heads = specs[0].kv_heads
        row = Row(
            -1,
            torch.tensor(addresses),
            torch.tensor([[_ROOM, 0, 0, _ROOM]] * len(specs), dtype=torch.int32),
            torch.zeros(len(specs), kv_heads, dtype=torch.int32),
            columns=1,
            steps=1,
        )
        return cls(row, [tensor for pair in held.values() for tensor in pair])
