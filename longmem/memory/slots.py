"""Slots on the device that hold blocks as they were written, for kernels that decode them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from longmem.memory.block_at import BlockAt
from longmem.memory.slab import DeviceSlab
from longmem.memory.transfers import Pair, Transfers
from longmem.ops.block_gather import Payloads


class Slots:
    """Fills a slab's slots beside the computation.

    Args:
        slab: whose slots have room for a payload.
        payload: how blocks in slots are written. Those written otherwise, raw ones under a codec, get
            no slot.
        transfers: of the slab's device.
    """

    def __init__(self, slab: DeviceSlab, payload: Payloads, transfers: Transfers) -> None:
        self._slab, self._payload, self._transfers = slab, payload, transfers

    def at(self, block: int) -> BlockAt | None:
        """The slot of a block; None if it is in none."""
        found = self._slab.memory(block)
        return None if found is None else BlockAt(*found, self._payload)

    def fill(self, blocks: Mapping[int, BlockAt], max_bytes: int) -> None:
        """Copy blocks that lie on the device into slots.

        Args:
            blocks: their payloads by number.
            max_bytes: most bytes the slots may take from now on.
        """
        for block, source in blocks.items():
            slot = self._reserved(block, source, max_bytes, ())
            if slot is not None:
                self._transfers.await_on_device([slot])  # a copy to whoever had it before
                slot.copy_(_bytes(source))

    def bring(
        self, blocks: Mapping[int, BlockAt], max_bytes: int, keep: Collection[int]
    ) -> dict[int, BlockAt]:
        """Begin to copy blocks from host memory into slots, as far as there are some; gives those that
        will lie there.

        Args:
            blocks: their payloads by number.
            max_bytes: most bytes the slots may take from now on.
            keep: blocks that must not be written over.
        """
        pairs: list[Pair] = []
        made = {}
        for block, source in blocks.items():
            slot = self._reserved(block, source, max_bytes, keep)
            if slot is not None:
                pairs.append((slot, _bytes(source)))
                made[block] = BlockAt(slot, source.tokens, self._payload)
        self._transfers.bring(pairs)
        return made

    def _reserved(
        self, block: int, source: BlockAt, max_bytes: int, keep: Collection[int]
    ) -> Tensor | None:
        """As much of a slot as the block needs."""
        if source.payload != self._payload:
            self._slab.discard([block])
            return None
        slot = self._slab.reserve(block, source.tokens, max_bytes, keep)
        return None if slot is None else slot[: source.memory.nbytes]


def _bytes(block: BlockAt) -> Tensor:
    return block.memory.view(-1).view(torch.uint8)
