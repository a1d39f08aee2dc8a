"""What one step of S sessions reads: one piece of device memory, brought by one transfer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from longmem.graphs.rows import Row
from longmem.ops.step_attention.places import Places


@dataclass(frozen=True)
class Shape:
    """Sizes of a step's tables: S sessions, L layers, H_kv heads."""

    sessions: int
    layers: int
    kv_heads: int


class _Views(NamedTuple):
    """ids ``[1, S]`` int64, positions ``[S]`` float64, addresses ``[L, S, 6]`` int64, extents
    ``[L, S, 4]`` and lengths ``[L, S, H_kv]`` int32."""

    ids: Tensor
    positions: Tensor
    addresses: Tensor
    extents: Tensor
    lengths: Tensor


class Inputs:
    """The tables of one graph. Where everything lies never changes; what lies there does.

    Args:
        shape: their sizes.
        device: where they lie.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        cells = shape.layers * shape.sessions
        self._sizes = [8 * shape.sessions] * 2 + [
            48 * cells,
            16 * cells,
            4 * cells * shape.kv_heads,
        ]
        self._memory = torch.zeros(sum(self._sizes), dtype=torch.uint8, device=device)
        self._views = self._view(self._memory)

    @property
    def ids(self) -> Tensor:
        """``[1, S]`` int64: the sessions' tokens."""
        return self._views.ids

    @property
    def positions(self) -> Tensor:
        """``[S]`` float64: their absolute positions."""
        return self._views.positions

    def places(self, layer: int) -> Places:
        """The tables of one layer."""
        _, _, addresses, extents, lengths = self._views
        return Places(addresses[layer], extents[layer], lengths[layer])

    def upload(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        steps: Sequence[int],
        rows: Sequence[Row],
    ) -> None:
        """Bring what S sessions need; nothing waits for it.

        Args:
            ids: their tokens.
            positions: absolute, of these tokens.
            steps: how many steps each has taken since its row was made.
            rows: where their keys and values lie.
        """
        # pinned memory is given out again only when the copies that read it are through
        host = torch.empty(
            self._memory.shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        to = self._view(host)
        to.ids[0] = torch.tensor(ids)
        to.positions[:] = torch.tensor(positions)
        torch.stack([row.addresses for row in rows], 1, out=to.addresses)
        torch.stack([row.extents for row in rows], 1, out=to.extents)
        torch.stack([row.lengths for row in rows], 1, out=to.lengths)
        to.extents[:, :, 2] += torch.tensor(steps, dtype=torch.int32)
        self._memory.copy_(host, non_blocking=True)

    def _view(self, memory: Tensor) -> _Views:
        s, layers, kv_heads = self.shape.sessions, self.shape.layers, self.shape.kv_heads
        ids, positions, addresses, extents, lengths = memory.split_with_sizes(self._sizes)
        return _Views(
            ids.view(torch.int64).view(1, s),
            positions.view(torch.float64),
            addresses.view(torch.int64).view(layers, s, 6),
            extents.view(torch.int32).view(layers, s, 4),
            lengths.view(torch.int32).view(layers, s, kv_heads),
        )
