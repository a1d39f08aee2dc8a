"""A closed block where it lies, for the kernel that gathers a working set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.memory.spec import LayerSpec
from longmem.memory.transfers import transfers_of
from longmem.ops.block_gather import RAW, Move, Payloads, Plan, gather, scatter
from longmem.ops.rotary import Angles, Rotary


@dataclass(frozen=True, eq=False)
class BlockAt:
    """A block's payload on the device or in pinned host memory.

    Args:
        memory: it, contiguous; kept from being freed.
        tokens: how many the block has.
        payload: how it is written.
    """

    memory: Tensor
    tokens: int
    payload: Payloads = "raw"


Block = Tensor | BlockAt
"""Keys and values ``[2, H_kv, n, D]``, or where they lie."""


def tokens_of(block: Block) -> int:
    """How many tokens a block has."""
    return block.shape[2] if isinstance(block, Tensor) else block.tokens


def located(block: Block, device: torch.device) -> BlockAt:
    """The same block by its address; one given by its values is brought to the device."""
    if isinstance(block, Tensor):
        return BlockAt(block.to(device).contiguous(), block.shape[2])
    return block


def gather_blocks(
    rows: Sequence[Sequence[tuple[BlockAt, int, int]]],
    k: Tensor,
    v: Tensor,
    turn: tuple[Rotary, Angles] | None = None,
) -> None:
    """Write blocks into rows of a working set, in one launch.

    Args:
        rows: (block, row where it begins, rank) for all KV heads, or a sequence for each.
        k, v: ``[H_kv, room, D]``.
        turn: see `longmem.ops.block_gather.gather`.
    """
    blocks = [block for row in rows for block, _, _ in row]
    payload: Payloads = next((b.payload for b in blocks if b.payload != "raw"), "raw")
    moves = [[_move(block, payload, start, rank) for block, start, rank in row] for row in rows]
    gather(Plan.of(moves, k.device), k, v, payload, turn)
    transfers_of(k.device).keep([block.memory for block in blocks])


def gathered(block: BlockAt, spec: LayerSpec) -> Tensor:
    """``[2, H_kv, n, D]`` of a block."""
    shape = (2, spec.kv_heads, block.tokens, spec.dim)
    kv = torch.empty(shape, dtype=spec.dtype, device=spec.device)
    gather_blocks([[(block, 0, 0)]], kv[0], kv[1])
    return kv


def scattered(k: Tensor, v: Tensor, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Rows of a buffer as blocks, copied in one launch.

    Args:
        k, v: ``[H_kv, L, D]``, each head's rows side by side.
        spans: (start, stop) of each block.

    Returns:
        Each ``[2, H_kv, n, D]``, views of one piece of memory.
    """
    heads, _, dim = k.shape
    memory = k.new_empty(sum(stop - start for start, stop in spans) * 2 * heads * dim)
    made = []
    for start, stop in spans:
        n = (stop - start) * 2 * heads * dim
        made.append(memory[:n].view(2, heads, stop - start, dim))
        memory = memory[n:]
    moves = [
        Move(kv.data_ptr(), start, kv.shape[2]) for kv, (start, _) in zip(made, spans, strict=True)
    ]
    scatter(Plan.of([moves], k.device), k, v)
    return made


def _move(block: BlockAt, payload: Payloads, start: int, rank: int) -> Move:
    mark = RAW if block.payload != payload else 0
    return Move(block.memory.data_ptr() + mark, start, block.tokens, rank)
