"""Closed blocks on the model's device: slots of one size, the least used written over."""

from __future__ import annotations

from collections.abc import Collection
from heapq import heappop, heappush
from math import log2

import torch
from torch import Tensor

from longmem.memory.spec import LayerSpec

_ALIGNED = 16  # bytes a kernel reads at once
_CHUNK_SLOTS = 32
"""Slots are allocated so many at once, so that a short session does not take the whole budget."""


class DeviceSlab:
    """Copies of one layer's blocks in slots.

    A slot holds keys and values ``[2, H_kv, n, D]`` in one piece, or whatever bytes a block has where
    kernels decode it.

    The block goes whose uses weigh least, a use that lies h others back 2^(-h / half_life). By recency
    alone every block that closes would push a looked-up one out: on the look-ups of a conversation of
    20,000 tokens with 16, 64 and 256 slots of 1,062 blocks 0.62, 0.91 and 0.985 of the blocks were
    found, and 0.75, 0.93 and 0.986 by weight (the half-life was chosen on these look-ups).

    Args:
        spec: the layer.
        block_size: most tokens in a block.
        half_life: uses after which one counts half.
        slot_bytes: of one slot; default room for a block's keys and values.
    """

    def __init__(
        self, spec: LayerSpec, block_size: int, half_life: int, slot_bytes: int | None = None
    ) -> None:
        self._spec = spec
        wanted = slot_bytes or block_size * spec.bytes_per_token
        self.slot_bytes = -(-wanted // _ALIGNED) * _ALIGNED
        self._chunks: list[Tensor] = []  # each [C, slot_bytes] uint8
        self._free: list[tuple[int, int]] = []  # (chunk, place in it)
        self._held: dict[int, tuple[tuple[int, int], int]] = {}  # slot and tokens
        self._step = 1 / half_life
        self._now = 0.0  # uses so far, in half-lives
        self._rank: dict[int, float] = {}  # log2 of a block's weight, plus the time it is taken at
        self._order: list[tuple[float, int]] = []  # a heap of ranks, also of such as no longer hold
        self.moved: set[int] | None = None
        """Where blocks that get or lose a slot are noted; None: nowhere."""

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
        return self._rows(block)

    def memory(self, block: int) -> tuple[Tensor, int] | None:
        """``[slot_bytes]`` uint8 of a block and its tokens, valid until the next `put` or `reserve`;
        None if it is not held."""
        if block not in self._held:
            return None
        self._use(block)
        return self._slot(block), self._held[block][1]

    def address(self, block: int) -> int | None:
        """Of a block's slot, which is not used by being asked for."""
        return self._slot(block).data_ptr() if block in self._held else None

    def touch(self, block: int) -> None:
        """A block that may be held was used."""
        if block in self._held:
            self._use(block)

    def put(self, block: int, kv: Tensor, max_bytes: int, keep: Collection[int] = ()) -> None:
        """Hold raw or decoded ``[2, H_kv, n, D]``, if there is a slot for it; see `reserve`."""
        if self.reserve(block, kv.shape[2], max_bytes, keep) is not None:
            self._rows(block).copy_(kv, non_blocking=True)

    def reserve(
        self, block: int, tokens: int, max_bytes: int, keep: Collection[int] = ()
    ) -> Tensor | None:
        """A slot for a block, ``[slot_bytes]`` uint8 to be written, if there is one.

        Args:
            block: its number; what was held of it is replaced.
            tokens: how many it has.
            max_bytes: most bytes the slots may take from now on.
            keep: blocks that must not be written over.
        """
        self.discard([block])
        self._resize(max_bytes // self.slot_bytes)
        slot = self._free.pop() if self._free else self._taken_from_another(keep)
        if slot is None:
            return None
        self._held[block] = slot, tokens
        self._note(block)
        self._use(block)
        return self._slot(block)

    def discard(self, blocks: Collection[int]) -> None:
        """Forget these blocks."""
        for block in blocks:
            if block in self._held:
                self._free.append(self._leave(block))

    def truncate(self, n_blocks: int) -> None:
        """Forget the blocks from `n_blocks` on."""
        self.discard([b for b in self._held if b >= n_blocks])

    def _slot(self, block: int) -> Tensor:
        chunk, place = self._held[block][0]
        return self._chunks[chunk][place]

    def _rows(self, block: int) -> Tensor:
        """A slot as keys and values ``[2, H_kv, n, D]``."""
        spec, n = self._spec, self._held[block][1]
        rows = self._slot(block)[: n * spec.bytes_per_token].view(spec.dtype)
        return rows.view(2, spec.kv_heads, n, spec.dim)

    def _taken_from_another(self, keep: Collection[int]) -> tuple[int, int] | None:
        spared, found = [], None
        while self._order and found is None:
            rank, block = heappop(self._order)
            if self._rank.get(block) != rank:  # used since, or gone
                continue
            if block in keep:
                spared.append((rank, block))
            else:
                found = block
        for entry in spared:
            heappush(self._order, entry)
        return None if found is None else self._leave(found)

    def _use(self, block: int) -> None:
        """All weights fall alike, so that blocks keep their order until they are used: it is told by
        log2(weight) + time, whenever that was taken."""
        self._now += self._step
        before = 2 ** (self._rank[block] - self._now) if block in self._rank else 0.0
        self._rank[block] = self._now + log2(1 + before)
        heappush(self._order, (self._rank[block], block))
        if len(self._order) > 4 * len(self._rank) + _CHUNK_SLOTS:
            self._order = sorted((rank, each) for each, rank in self._rank.items())

    def _leave(self, block: int) -> tuple[int, int]:
        """Forget a block; gives its slot."""
        del self._rank[block]
        self._note(block)
        return self._held.pop(block)[0]

    def _note(self, block: int) -> None:
        if self.moved is not None:
            self.moved.add(block)

    def _resize(self, most: int) -> None:
        """Allocate when no slot is free and `most` slots allow it; give chunks back when they do not."""
        have = sum(len(chunk) for chunk in self._chunks)
        while have > most:
            have -= len(self._chunks.pop())
            last = len(self._chunks)
            self.discard([b for b, (slot, _) in self._held.items() if slot[0] >= last])
            self._free = [slot for slot in self._free if slot[0] < last]
        if not self._free and have < most:
            n = min(_CHUNK_SLOTS, most - have)
            shape = (n, self.slot_bytes)
            self._chunks.append(torch.empty(shape, dtype=torch.uint8, device=self._spec.device))
            self._free = [(len(self._chunks) - 1, place) for place in reversed(range(n))]
