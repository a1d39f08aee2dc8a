"""What kernels and torch read of an index besides its rows, where its device is not the host."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.memory.uploading import upload
from longmem.ops.block_scoring import IndexRow, table_of

_FIRST = 256


class IndexOnDevice:
    """A copy of where blocks start, kept on the device, and the index as a table of one row.

    Changes go there when they are asked for, all together in one copy that nothing waits for.

    Args:
        device: where the rows lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._starts = torch.zeros(_FIRST, dtype=torch.int32, device=device)
        self._right = 0  # so many of them are right
        self._row: IndexRow | None = None
        self._table: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self._starts.nbytes

    def changed(self, at: int) -> None:
        """The start at place `at` and those behind it are others now."""
        self._right = min(self._right, at)

    def starts(self, starts: Tensor, n: int) -> Tensor:
        """The first `n` of starts (int64 on the CPU) as int32 on the device, a view."""
        if n > len(self._starts):
            grown = self._starts.new_zeros(max(n, len(self._starts) * 3 // 2))
            grown[: self._right] = self._starts[: self._right]
            self._starts = grown
        if n > self._right:
            self._starts[self._right : n] = upload(starts[self._right : n].int(), self._device)
            self._right = n
        return self._starts[:n]

    def table(self, row: IndexRow) -> Tensor:
        """``[1, 6]`` int64 on the device: `row`, as kernels read it."""
        if self._table is None or row != self._row:
            self._row, self._table = row, table_of([row], self._device)
        return self._table
