"""Where one layer's blocks lie, as kernels read it that choose blocks by themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.memory.blocks import BlockTable
from longmem.memory.raw_blocks import RawBlocks
from longmem.memory.slab import DeviceSlab

_FIRST = 64


class BlockDirectory:
    """A table ``[N, 2]`` int64 of raw blocks' addresses and tokens, (0, 0) for those that lie in the
    store alone. It lies in host memory, pinned for a GPU, and is read there in place.

    Args:
        blocks: where blocks end.
        host: the blocks in host memory.
        slab: those in slots, which are read from there; None: there are none.
        n: blocks closed so far.
    """

    def __init__(
        self, blocks: BlockTable, host: RawBlocks, slab: DeviceSlab | None, n: int
    ) -> None:
        self._blocks, self._host, self._slab = blocks, host, slab
        self._moved = set(range(n))  # blocks that may lie elsewhere than the table says
        host.watch(self._moved)
        if slab is not None:
            slab.moved = self._moved
        self._table = self._room(_FIRST)
        self._rows = self._table.numpy()

    def address(self, first: int, stop: int) -> int | None:
        """Of the table, right for the blocks ``first .. stop - 1`` until one of them moves; None if one
        lies in the store alone. No kernel may be reading it."""
        self._update(stop)
        return self._table.data_ptr() if self._rows[first:stop, 0].all() else None

    def _update(self, n: int) -> None:
        if n > len(self._table):
            grown = self._room(2 * n)
            grown[: len(self._table)] = self._table
            self._table, self._rows = grown, grown.numpy()
        for block in self._moved:
            if block < len(self._rows):
                self._rows[block] = self._found(block) if block < n else (0, 0)
        self._moved.clear()

    def _found(self, block: int) -> tuple[int, int]:
        address = None if self._slab is None else self._slab.address(block)
        if address is None:
            address = self._host.address(block)
        if address is None:
            return 0, 0
        start, stop = self._blocks.span(block)
        return address, stop - start

    def _room(self, blocks: int) -> Tensor:
        return torch.zeros(blocks, 2, dtype=torch.int64, pin_memory=self._host.on_gpu)
