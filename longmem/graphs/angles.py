"""Rotation angles of a step's tokens, from positions that lie on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.graphs.kinds import LayerKind
from longmem.ops.rotary import Angles, Rotary

_Key = tuple[Rotary, int, torch.dtype]
"""Layers rotate alike that have these in common: how, at which distance far tokens stand, the dtype."""


@dataclass(frozen=True, eq=False)
class _Table:
    """cos and sin ``[S, 2, 1, R / 2]`` of the tokens' positions and of n_local."""

    rotary: Rotary
    cos: Tensor
    sin: Tensor

    def turn(self, positions: Tensor) -> None:
        """Set the first of the two; in float64 until the end, as `Rotary.angles` does."""
        angle = positions[:, None] * self.rotary.inv_freq
        self.cos[:, 0, 0] = angle.cos()
        self.sin[:, 0, 0] = angle.sin()


class StepAngles:
    """Tables as `longmem.ops.step_attention.take_in` reads them.

    Args:
        kinds: the layers.
        positions: ``[S]`` float64, read at each `turn`.
    """

    def __init__(self, kinds: Sequence[LayerKind], positions: Tensor) -> None:
        self._positions = positions
        self._tables: dict[_Key, _Table] = {}
        self._of = [self._table(kind) for kind in kinds]

    def turn(self) -> None:
        """Make the tables of the present positions."""
        for table in self._tables.values():
            table.turn(self._positions)

    def of(self, layer: int) -> Angles | None:
        """The table of a layer; None where it does not rotate."""
        table = self._of[layer]
        return None if table is None else (table.cos, table.sin)

    def _table(self, kind: LayerKind) -> _Table | None:
        rotary = kind.spec.rotary
        if rotary is None or kind.far_angles is None:
            return None
        key = (rotary, kind.n_local, kind.spec.dtype)
        if key not in self._tables:
            cos, sin = (self._both(far) for far in kind.far_angles)
            self._tables[key] = _Table(rotary, cos, sin)
        return self._tables[key]

    def _both(self, far: Tensor) -> Tensor:
        """``[1, R / 2]`` -> ``[S, 2, 1, R / 2]``, which `turn` puts the positions' into."""
        return far.expand(2, *far.shape).repeat(len(self._positions), 1, 1, 1)
