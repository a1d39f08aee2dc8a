"""What groups of rows hold for each query, from their mean and variance: one read of the summaries."""

from __future__ import annotations

import triton
import triton.language as tl

_CHANNELS = tl.constexpr(16)  # at once; divides every head dimension


@triton.jit(do_not_specialize=["n_rows", "n_groups"])  # type: ignore[untyped-decorator]  # triton gives none
def estimate_kernel(  # type: ignore[no-untyped-def]  # triton gives types
    queries,  # [H_kv, R, D] by strides, D side by side
    summaries,  # [H_kv, 2 D, G] float32 by strides, G side by side: means, then variances
    counts,  # [G] float32: rows of each group
    peaks,  # [H_kv, R, G] float32, out: the largest logit to expect
    masses,  # [H_kv, R, G] float32, out: log of the sum of exp(logit) to expect
    q_head,
    q_row,
    s_head,
    s_channel,
    n_rows,  # R
    n_groups,  # G
    scaling,
    peak,  # standard deviations above the mean
    D: tl.constexpr,
    ROWS: tl.constexpr,
    GROUPS: tl.constexpr,
):
    head = tl.program_id(2)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    there, alive = (row < n_rows)[:, None], (group < n_groups)[None, :]
    mean = tl.zeros([ROWS, GROUPS], tl.float32)
    variance = tl.zeros([ROWS, GROUPS], tl.float32)
    for start in range(0, D, _CHANNELS):
        channel = start + tl.arange(0, _CHANNELS)
        at = queries + head * q_head + row[:, None] * q_row + channel[None, :]
        q = tl.load(at, mask=there, other=0.0).to(tl.float32) * scaling
        at = summaries + head.to(tl.int64) * s_head + channel[:, None] * s_channel + group[None, :]
        means = tl.load(at, mask=alive, other=0.0)
        spreads = tl.load(at + D * s_channel, mask=alive, other=0.0)
        # In full precision: what is ranked are differences of sums.
        mean += tl.dot(q, means, input_precision="ieee")
        variance += tl.dot(q * q, spreads, input_precision="ieee")
    count = tl.load(counts + group, mask=group < n_groups, other=1.0)
    at = (head * n_rows + row[:, None]) * n_groups + group[None, :]
    tl.store(peaks + at, mean + peak * tl.sqrt(variance), mask=there & alive)
    tl.store(masses + at, mean + 0.5 * variance + tl.log(count)[None, :], mask=there & alive)
