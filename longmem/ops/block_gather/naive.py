"""Blocks between where they are kept and a working set, one block after the other: the definition."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longmem.ops.rotary import Angles, Rotary


def gather_naive(
    blocks: Sequence[Tensor],
    starts: Sequence[int],
    target_k: Tensor,
    target_v: Tensor,
    turn: tuple[Rotary, Angles, Sequence[int]] | None = None,
) -> None:
    """Write blocks into rows of a working set.

    Args:
        blocks: each ``[2, H_kv, n, D]``, keys then values; decoded if a codec wrote them. n = 0 writes
            nothing.
        starts: the row where each begins.
        target_k, target_v: ``[H_kv, room, D]``.
        turn: rotates each block's keys by its rank: (how, cos and sin ``[ranks, R / 2]``, the rank of
            each block). None leaves keys as they are.
    """
    for i, (kv, start) in enumerate(zip(blocks, starts, strict=True)):
        k, v = kv
        if turn is not None:
            rotary, (cos, sin), ranks = turn
            k = rotary.rotate(k, (cos[ranks[i]], sin[ranks[i]]))
        target_k[:, start : start + k.shape[1]] = k
        target_v[:, start : start + v.shape[1]] = v


def scatter_naive(k: Tensor, v: Tensor, starts: Sequence[int], blocks: Sequence[Tensor]) -> None:
    """The way back: rows of a buffer become blocks.

    Args:
        k, v: ``[H_kv, L, D]``.
        starts: the row where each block begins.
        blocks: each ``[2, H_kv, n, D]``, to be written.
    """
    for kv, start in zip(blocks, starts, strict=True):
        stop = start + kv.shape[2]
        kv[0], kv[1] = k[:, start:stop], v[:, start:stop]
