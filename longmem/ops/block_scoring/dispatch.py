"""What computes scores and choices: kernels where they serve, torch elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longmem.ops.block_scoring.naive import choose_naive, fold_naive, score_naive
from longmem.ops.block_scoring.table import Bounds, IndexRow, table_of
from longmem.ops.kernels import interpreted, kernels_serve
from longmem.ops.scratch import Scratch


class Choice(NamedTuple):
    """The outcome of S look-ups; it lies in the scratch that was given.

    Args:
        ids: ``[S, k]`` int32, or ``[S, H_kv, k]`` where every KV head chose: numbers of blocks,
            ascending; -1 behind the last where there are fewer.
        totals: ``[S, columns]`` float32 votes of the candidates, oldest first, summed over KV heads;
            what lies behind a session's last is undefined.
        scores: ``[S, H_kv, columns]`` float32 votes by KV head.
    """

    ids: Tensor
    totals: Tensor
    scores: Tensor


def score(
    queries: Tensor, keys: Tensor, starts: Tensor, *, scaling: float = 1.0, most_rows: int = 16
) -> Tensor:
    """Votes ``[H_kv, N]`` float32 of the blocks of one index; see `score_naive`.

    Args:
        queries: ``[H_kv, R, D]``, of the dtype of keys.
        keys: ``[H_kv, M, D]`` rows of N blocks without padding.
        starts: ``[N + 1]`` int32 on the device: the first row of each block, from 0.
        scaling: factor of the logits.
        most_rows: about as many rows as a block has at most; changes no more than rounding.
    """
    if not _served(queries, keys):
        return score_naive(queries, keys, starts, scaling)
    row = _row_of(keys, starts)
    bounds = Bounds(row.stop, most_rows)
    table = table_of([row], keys.device)
    found = _vote(queries.to(keys.dtype)[None], table, bounds, scaling, Scratch())
    return found[0][0, :, : row.stop]


def fold(
    queries: Tensor, keys: Tensor, starts: Tensor, *, scaling: float = 1.0, most_rows: int = 16
) -> Tensor:
    """``[H_kv, R, N]`` float32: the log of the sum of exp(logit) over each block's rows; arguments as
    of `score`."""
    if not _served(queries, keys):
        return fold_naive(queries, keys, starts, scaling)
    row = _row_of(keys, starts)
    return fold_blocks(queries.to(keys.dtype), row, scaling=scaling, most_rows=most_rows)


def fold_blocks(queries: Tensor, row: IndexRow, *, scaling: float, most_rows: int) -> Tensor:
    """`fold` over the blocks ``first .. stop - 1`` of an index that kernels serve.

    Args:
        queries: ``[H_kv, R, D]`` with unit stride in D, of the dtype of keys.
        row: the index.
        scaling: factor of the logits.
        most_rows: about as many rows as a block has at most.
    """
    from longmem.ops.block_scoring import passes

    table, bounds = table_of([row], queries.device), Bounds(row.stop - row.first, most_rows)
    found = passes.fold(queries[None], table, bounds, scaling, Scratch())
    return found.values[0, :, :, : bounds.blocks]


def choose(scores: Tensor, k: int, by_head: bool = False) -> Tensor:
    """The `k` best blocks: ids ``[min(k, N)]`` int32 on the device, ascending; the older of equals.

    Args:
        scores: ``[N]``, or ``[H_kv, N]`` by KV head, float32.
        k: how many.
        by_head: every KV head chooses, ids ``[H_kv, min(k, N)]``; otherwise scores are summed.
    """
    if scores.dim() == 2 and not by_head:
        scores = scores.sum(0)
    if not (scores.is_cuda or interpreted()) or not kernels_serve(
        scores.device, torch.bfloat16, 64
    ):
        return choose_naive(scores, k)
    if not min(k, scores.shape[-1]):
        return scores.new_zeros(*scores.shape[:-1], 0, dtype=torch.int32)
    from longmem.ops.block_scoring import passes

    lines = scores.contiguous().view(-1, scores.shape[-1])
    ids = passes.select(lines, min(k, lines.shape[1]), Scratch())
    return ids.view(*scores.shape[:-1], -1)


def score_and_choose(
    queries: Tensor,
    table: Tensor,
    bounds: Bounds,
    *,
    k: int,
    scaling: float,
    by_head: bool = False,
    scratch: Scratch | None = None,
) -> Choice:
    """One look-up for each of S sessions in one layer. Nothing waits for the device, sizes depend on
    `bounds` alone, and a session's result on nothing but its own queries and index.

    Args:
        queries: ``[S, H_kv, R, D]`` with unit stride in D, un-scaled, of the dtype of keys; those of
            one decode step ``[S, H, D]`` are ``q.unflatten(1, (H_kv, -1))``.
        table: ``[S, 6]`` int64 on the device, rows `IndexRow`.
        bounds: what the indexes do not exceed.
        k: blocks to choose.
        scaling: factor of the logits.
        by_head: every KV head chooses for itself.
        scratch: where everything is computed; None: new memory.

    Raises:
        ValueError: no kernels for this device, dtype or head dimension.
    """
    if not kernels_serve(queries.device, queries.dtype, queries.shape[3]):
        raise ValueError(f"no kernels for {queries.dtype} of D = {queries.shape[3]} here")
    from longmem.ops.block_scoring import passes

    scratch = Scratch() if scratch is None else scratch
    sessions, heads = queries.shape[:2]
    scores, totals = _vote(queries, table, bounds, scaling, scratch)
    lines, per_session = (scores.flatten(0, 1), heads) if by_head else (totals, 1)
    ids = passes.select(lines, k, scratch, table=table, per_session=per_session)
    return Choice(ids.view(sessions, heads, k) if by_head else ids, totals, scores)


def estimate(
    queries: Tensor, summaries: Tensor, counts: Tensor, *, scaling: float, peak: float
) -> tuple[Tensor, Tensor]:
    """What groups of rows hold for each query, by kernel; the definition is
    `longmem.retrieval.estimate`.

    Args:
        queries: ``[H_kv, R, D]`` with unit stride in D.
        summaries: ``[H_kv, 2 D, G]`` float32 with unit stride in G: means, then variances.
        counts: ``[G]`` float32 rows per group.
        scaling: factor of the logits.
        peak: standard deviations above the mean at which the largest logit is expected.

    Returns:
        ``[H_kv, R, G]`` float32 each: the largest logit to expect, and the log of the sum of exp(logit).
    """
    from longmem.ops.block_scoring import passes

    return passes.estimate(queries, summaries, counts, scaling, peak)


def _served(queries: Tensor, keys: Tensor) -> bool:
    return (
        kernels_serve(keys.device, keys.dtype, keys.shape[2])
        and queries.stride(2) == 1
        and keys.stride()[1:] == (keys.shape[2], 1)
    )


def _row_of(keys: Tensor, starts: Tensor) -> IndexRow:
    """The row of an index given as tensors."""
    room = keys.stride(0) // keys.shape[2]
    return IndexRow(keys.data_ptr(), starts.data_ptr(), 0, 0, len(starts) - 1, room)


def _vote(
    queries: Tensor, table: Tensor, bounds: Bounds, scaling: float, scratch: Scratch
) -> tuple[Tensor, Tensor]:
    """Votes by KV head ``[S, H_kv, columns]`` and their sums ``[S, columns]``."""
    from longmem.ops.block_scoring import passes

    folded = passes.fold(queries, table, bounds, scaling, scratch)
    tile = passes.tile_of(queries.shape[2], queries.shape[3], bounds.rows)
    return passes.tally(folded, table, tile, scratch)
