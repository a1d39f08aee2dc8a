"""Rows of an index in balanced groups of similar ones."""

from __future__ import annotations

import torch
from torch import Tensor

_SAMPLE = 1024
_ITERATIONS = 4


def group_order(rows: Tensor, size: int) -> Tensor:
    """An order of rows in which every `size` of them, one after the other, are similar.

    Rows are sorted by their projection on their principal direction and halved, and so are the halves
    (a principal direction tree; Verma, Kpotufe and Dasgupta, UAI 2009), until a part is one group.
    Cuts lie at multiples of `size`, so that only the last group may be smaller. Equal rows keep their
    order: the same rows give the same groups.

    Args:
        rows: ``[H_kv, M, D']``; each head is grouped by itself.
        size: rows of a group.

    Returns:
        ``[H_kv, M]`` int64: which row stands at each place.
    """
    kv_heads, n, _ = rows.shape
    order = torch.arange(n, device=rows.device).repeat(kv_heads, 1)
    _halve(rows.float().clone(), order, size)
    return order


def _halve(rows: Tensor, order: Tensor, size: int) -> None:
    """Sort `rows` ``[H_kv, n, D']`` and `order` ``[H_kv, n]`` in place."""
    groups = -(-rows.shape[1] // size)
    if groups < 2:
        return
    along = (rows @ _principal_direction(rows)[..., None])[..., 0]
    ranks = along.sort(dim=1, stable=True).indices
    order.copy_(order.gather(1, ranks))
    for head, rank in zip(rows, ranks, strict=True):
        head.copy_(head[rank])  # whole rows at once; gather would move element by element
    middle = groups // 2 * size
    _halve(rows[:, :middle], order[:, :middle], size)
    _halve(rows[:, middle:], order[:, middle:], size)


def _principal_direction(rows: Tensor) -> Tensor:
    """``[H_kv, D']``: roughly where rows ``[H_kv, n, D']`` spread most, by power iteration from the
    channel of the largest variance; of many rows an even sample is looked at."""
    sample = rows[:, :: max(1, rows.shape[1] // _SAMPLE)]
    centred = sample - sample.mean(1, keepdim=True)
    scatter = centred.mT @ centred  # [H_kv, D', D']
    widest = scatter.diagonal(dim1=1, dim2=2).argmax(1)
    direction = scatter[torch.arange(len(scatter), device=rows.device), widest]
    for _ in range(_ITERATIONS):
        direction = (scatter @ direction[..., None])[..., 0]
        direction /= direction.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return direction
