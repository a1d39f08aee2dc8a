"""The shares of a step's attention become one; then what each key received."""

# Triton gives the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from longmem.ops.kernels.rounded import rounded


@triton.jit
def whole_lse(lses, sink, SINKS: tl.constexpr):
    """Log of the softmax's denominator over all shares, of the logs of each: ``[SHARES, n]`` -> ``[n]``.
    A sink adds to the denominator only. Minus infinity where there is no key."""
    top = tl.max(lses, 0)
    if SINKS:
        top = tl.maximum(top, sink)
    top = tl.where(top > float("-inf"), top, 0.0)
    total = tl.sum(tl.exp(lses - top), 0)
    if SINKS:
        total += tl.exp(sink - top)
    return top + tl.log(total)


@triton.jit(do_not_specialize_on_alignment=["lengths"])
def finish(
    outs,
    lses,
    sinks,
    addresses,
    extents,
    lengths,
    out,
    whole,
    logits,
    columns,
    n_local,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
    SHARES: tl.constexpr,
    APPENDED: tl.constexpr,
    PENDING: tl.constexpr,
    SINKS: tl.constexpr,
    SUM_WEIGHTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Programs (session and KV head, i): the first GROUP of the i combine the shares of one query head
    each into ``out [S, H, DIM]`` and ``whole [S, H]``, the log of the denominator; the others turn
    BLOCK_C columns of ``logits [S, H_kv, GROUP, columns]`` into weights, in place, and sum them up."""
    at, i = tl.program_id(0), tl.program_id(1)
    if i < GROUP:
        combine(
            outs, lses, sinks, out, whole, at, i, KV_HEADS, GROUP, DIM, PAD, SPLITS, SHARES, SINKS
        )
    elif SUM_WEIGHTS or WEIGHTS:
        weigh(
            lses, sinks, addresses, extents, lengths, logits, columns, n_local, at, i - GROUP,
            KV_HEADS, GROUP, ROWS, SPLITS, SHARES, APPENDED, PENDING, SINKS, SUM_WEIGHTS, WEIGHTS,
            BLOCK_C,
        )  # fmt: skip


@triton.jit
def combine(
    outs,
    lses,
    sinks,
    out,
    whole,
    at,
    g,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAD: tl.constexpr,
    SPLITS: tl.constexpr,
    SHARES: tl.constexpr,
    SINKS: tl.constexpr,
):
    """One query head: its shares, weighted by their denominators."""
    share, d = tl.arange(0, SHARES), tl.arange(0, PAD)
    rows = (at * SPLITS + share) * GROUP + g
    own = tl.load(lses + rows, share < SPLITS, float("-inf"))
    sink = 0.0
    if SINKS:
        sink = tl.load(sinks + at % KV_HEADS * GROUP + g).to(tl.float32)
    lse = whole_lse(own, sink, SINKS)
    held = own > float("-inf")  # of an empty share nothing was written
    cells = outs + rows[:, None].to(tl.int64) * DIM + d[None]
    parts = tl.load(cells, held[:, None] & (d[None] < DIM), 0.0)
    weight = tl.where(held, tl.exp(own - lse), 0.0)
    row = at * GROUP + g
    found = rounded(tl.sum(parts * weight[:, None], 0), out.dtype.element_ty)
    tl.store(out + row.to(tl.int64) * DIM + d, found, d < DIM)
    tl.store(whole + row, lse)


@triton.jit
def weigh(
    lses,
    sinks,
    addresses,
    extents,
    lengths,
    logits,
    columns,
    n_local,
    at,
    block,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
    SHARES: tl.constexpr,
    APPENDED: tl.constexpr,
    PENDING: tl.constexpr,
    SINKS: tl.constexpr,
    SUM_WEIGHTS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Weights of BLOCK_C columns, far tokens first; those of the window are summed over the group."""
    session, head = at // KV_HEADS, at % KV_HEADS
    lo, room = tl.load(extents + session * 4 + 1), tl.load(extents + session * 4 + 3)
    hi = tl.load(extents + session * 4 + 2) + APPENDED
    far_columns = 0
    for other in range(KV_HEADS):
        far_columns = tl.maximum(far_columns, tl.load(lengths + session * KV_HEADS + other))
    column = block * BLOCK_C + tl.arange(0, BLOCK_C)
    row = column - far_columns + lo
    near = (column >= far_columns) & (row < hi) & (row >= hi - n_local)
    live = near
    if WEIGHTS:
        live = near | (column < tl.load(lengths + at))
        if PENDING:
            live = live | ((column >= far_columns) & (row < hi))

    share, g = tl.arange(0, SHARES), tl.arange(0, ROWS)
    rows = (at * SPLITS + share[:, None]) * GROUP + g[None]
    own = tl.load(lses + rows, (share[:, None] < SPLITS) & (g[None] < GROUP), float("-inf"))
    sink = tl.full([ROWS], 0.0, tl.float32)
    if SINKS:
        sink = tl.load(sinks + head * GROUP + g, g < GROUP, 0.0).to(tl.float32)
    lse = whole_lse(own, sink, SINKS)

    cells = logits + (at * GROUP + g[:, None]).to(tl.int64) * columns + column[None]
    used = live[None] & (g[:, None] < GROUP)
    weights = tl.exp(tl.load(cells, used, 0.0) - lse[:, None])
    weights = tl.where(used, weights, 0.0)
    if WEIGHTS:
        tl.store(cells, weights, (g[:, None] < GROUP) & (column[None] < columns))
    if SUM_WEIGHTS:
        mass = tl.load(addresses + session * 6 + 5).to(tl.pointer_type(tl.float32))
        sums = mass + head.to(tl.int64) * room + row
        tl.store(sums, tl.load(sums, near, 0.0) + tl.sum(weights, 0), near)
