"""How large the cases are: those of an 8B model on a GPU, and small ones for the interpreter."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Sizes of one layer and its memory.

    Args:
        heads, kv_heads: H and H_kv.
        sessions: sessions of one decode step.
        initial: initial tokens.
        local: tokens of the local window.
        topk: blocks of a working set.
        block_size: tokens of a block.
        segment: tokens of one forward pass.
        blocks: closed blocks that a look-up ranks.
        recycled: tokens per KV head that recycled steps attend to.
    """

    heads: int
    kv_heads: int
    sessions: int
    initial: int
    local: int
    topk: int
    block_size: int
    segment: int
    blocks: int
    recycled: int

    @property
    def far(self) -> int:
        """Tokens of the initial tokens and the blocks of a working set."""
        return self.initial + self.topk * self.block_size


TARGET = Size(
    heads=32,
    kv_heads=8,
    sessions=16,
    initial=128,
    local=4096,
    topk=16,
    block_size=128,
    segment=1024,
    blocks=7782,
    recycled=1024,
)
"""Llama-3.1-8B after a million tokens."""

TINY = Size(
    heads=4,
    kv_heads=2,
    sessions=2,
    initial=3,
    local=37,
    topk=2,
    block_size=16,
    segment=33,
    blocks=5,
    recycled=16,
)
"""What the interpreter gets through in a moment."""
