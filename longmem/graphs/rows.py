"""Where one session's keys and values lie, layer by layer, as a graph's tables say it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.memory import SessionMemory
from longmem.memory.kernel_steps import place_of

AHEAD = 64
"""Steps for which room is made at once: so many need no new row."""


@dataclass(frozen=True, eq=False)
class Row:
    """One session's rows of `longmem.ops.step_attention.Places`, of all L layers.

    Args:
        version: `SessionMemory.version` it was made for.
        addresses: ``[L, 6]`` int64.
        extents: ``[L, 4]`` int32, before any of the steps it is good for.
        lengths: ``[L, H_kv]`` int32.
        columns: most tokens a layer attends to in the last of these steps.
        steps: how many they are.
    """

    version: int
    addresses: Tensor
    extents: Tensor
    lengths: Tensor
    columns: int
    steps: int


def row_of(memory: SessionMemory) -> Row:
    """Make room for `AHEAD` steps, and tell where everything lies."""
    layers = memory.layers
    for layer in layers:
        layer.local.reserve(AHEAD)
    places, kv_heads = [place_of(layer) for layer in layers], layers[0].spec.kv_heads
    return Row(
        memory.version,
        torch.tensor([place[:6] for place in places]),
        torch.tensor([place[6:10] for place in places], dtype=torch.int32),
        torch.tensor([place.by_head(kv_heads) for place in places], dtype=torch.int32),
        max(place.columns for place in places) + AHEAD,
        AHEAD,
    )
