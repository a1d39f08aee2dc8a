"""Look-ups: the index of one session and of many, scored and chosen from; groups of rows estimated."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from longmem.bench.kernels.case import Case
from longmem.bench.kernels.drawing import SUMS, Draw, apart
from longmem.bench.kernels.size import Size
from longmem.bench.kernels.spoiling import spoilt
from longmem.ops.block_scoring import (
    Bounds,
    Choice,
    IndexRow,
    estimate,
    score_and_choose,
    score_naive,
    table_of,
)
from longmem.ops.scratch import Scratch
from longmem.retrieval import PEAK
from longmem.retrieval import estimate as estimate_in_torch

_ROWS = 4
"""Representatives of a block: `repr_topk`."""
_GROUP = 16
"""Rows of a group that a two-level look-up estimates."""


def cases(size: Size, dim: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """A decode step's look-ups, of one session and of many; and a segment's, by its means."""
    group = size.heads // size.kv_heads
    for sessions in (1, size.sessions):
        yield _look_up(size, sessions, group, dim, dtype, device)
    yield _look_up(size, 1, 16 * group, dim, dtype, device)
    yield _estimated(size, group, dim, dtype, device)


def _look_up(
    size: Size, sessions: int, rows: int, dim: int, dtype: torch.dtype, device: torch.device
) -> Case:
    draw, scratch, n = Draw(dtype, device), Scratch(), size.blocks
    keys = draw(sessions, size.kv_heads, n * _ROWS, dim)
    queries = draw(sessions, size.kv_heads, rows, dim)
    starts = torch.arange(0, n * _ROWS + 1, _ROWS, dtype=torch.int32, device=device)
    rows_of = [IndexRow(own.data_ptr(), starts.data_ptr(), 0, 0, n, n * _ROWS) for own in keys]
    table, bounds, k = table_of(rows_of, device), Bounds(n, _ROWS), size.topk
    scaling = dim**-0.5

    def run(scratch: Scratch = scratch, starts: torch.Tensor = starts) -> Choice:
        # the table holds but the address of `starts`
        return score_and_choose(queries, table, bounds, k=k, scaling=scaling, scratch=scratch)

    def error() -> float:
        with spoilt():
            choice, worst = run(Scratch()), 0.0
        for s in range(sessions):
            votes = score_naive(queries[s], keys[s], starts, scaling)
            worst = max(worst, apart(choice.scores[s, :, :n], votes, 4 * SUMS))
            worst = max(worst, _regret(choice.ids[s], votes.sum(0), k))
        return worst

    return Case(
        "block_scoring", f"look-up, {sessions} session(s), {rows} queries a head",
        ("fold" if rows <= 16 else "fold_many", "tally", "select"), f"{n:,} blocks of {_ROWS} keys",
        dim, keys.nbytes + queries.nbytes, 2 * rows * keys.numel(), run, error,
    )  # fmt: skip


def _estimated(size: Size, rows: int, dim: int, dtype: torch.dtype, device: torch.device) -> Case:
    draw, n = Draw(dtype, device), -(-size.blocks * _ROWS // _GROUP)
    queries = draw(size.kv_heads, rows, dim)
    summaries = draw(size.kv_heads, 2 * dim, n, dtype=torch.float32)
    summaries[:, dim:].abs_()
    counts = torch.full((n,), float(_GROUP), device=device)
    scaling = dim**-0.5

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        return estimate(queries, summaries, counts, scaling=scaling, peak=PEAK)

    def error() -> float:
        expected = estimate_in_torch(queries.float() * scaling, summaries, counts)
        with spoilt():
            got = run()
        return max(apart(own, other, SUMS) for own, other in zip(got, expected, strict=True))

    return Case(
        "block_scoring", f"estimate, {rows} queries a head", ("estimate",), f"{n:,} groups", dim,
        summaries.nbytes + queries.nbytes + 8 * size.kv_heads * rows * n,
        2 * rows * summaries.numel(), run, error,
    )  # fmt: skip


def _regret(ids: torch.Tensor, votes: torch.Tensor, k: int) -> float:
    """By how much the least of the chosen falls short of the k-th best, as a share of what rounding
    may do; infinite where fewer were chosen, or one twice."""
    chosen = sorted({i for i in ids.tolist() if i >= 0})
    k = min(k, len(votes))
    if len(chosen) != k:
        return float("inf")
    wanted = votes.topk(k).values.min()
    return float((wanted - votes[chosen].min()) / votes.max()) / (4 * SUMS)
