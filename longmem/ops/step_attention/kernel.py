"""Attention of one token of each session over a share of its keys."""

# Triton gives the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from longmem.ops.kernels import Form
from longmem.ops.kernels.product import product
from longmem.ops.kernels.rounded import rounded

NO_LOGITS = tl.constexpr(0)
NEAR_LOGITS = tl.constexpr(1)


@triton.jit
def query_rows(
    q, head, stride, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, PAD: tl.constexpr
):
    """The query heads of one KV head as rows ``[ROWS, PAD]``, zero beyond GROUP and DIM."""
    g, d = tl.arange(0, ROWS)[:, None], tl.arange(0, PAD)[None]
    return tl.load(q + (head * GROUP + g) * stride + d, (g < GROUP) & (d < DIM), 0.0)


@triton.jit
def token_rows(
    base, first, live, like, DIM: tl.constexpr, PAD: tl.constexpr, BLOCK_N: tl.constexpr
):
    """`live` rows from row `first` on of the buffer at address `base`: ``[BLOCK_N, PAD]``, then zeros."""
    n, d = tl.arange(0, BLOCK_N)[:, None], tl.arange(0, PAD)[None]
    start = base.to(tl.pointer_type(like.dtype.element_ty)) + first * DIM
    rows = tl.multiple_of(start, 16) + (n * DIM + d)
    if DIM == PAD:
        return tl.load(rows, n < live, 0.0)
    return tl.load(rows, (n < live) & (d < DIM), 0.0)


@triton.jit
def capped(logits, softcap):
    """``softcap * tanh(logits / softcap)``."""
    return softcap - 2 * softcap / (tl.exp(logits * (2 / softcap)) + 1)


@triton.jit(do_not_specialize_on_alignment=["lengths"])
def attend_share(
    q_near,
    q_far,
    near_session,
    near_head,
    far_session,
    far_head,
    addresses,
    extents,
    lengths,
    outs,
    lses,
    logits,
    columns,
    n_local,
    scaling,
    softcap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    PAD: tl.constexpr,
    APPENDED: tl.constexpr,
    PENDING: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SUM_LOGITS: tl.constexpr,
    KEEP: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One of SPLITS shares of the keys of one KV head of one session; PROGRAMS share one session.

    Far, pending and near keys each start their own tiles; the list of all tiles is cut into shares as
    equal as can be. Writes ``outs [S, H_kv, SPLITS, GROUP, DIM]`` and ``lses [S, H_kv, SPLITS, GROUP]``
    of a softmax over the share alone; of an empty share only the latter, minus infinity.
    """
    SPLITS: tl.constexpr = PROGRAMS // KV_HEADS if PROGRAMS > KV_HEADS else 1
    at, split = tl.program_id(0), tl.program_id(1)
    session, head = at // KV_HEADS, at % KV_HEADS
    far = tl.load(lengths + at)
    far_room, lo = tl.load(extents + session * 4), tl.load(extents + session * 4 + 1)
    hi = tl.load(extents + session * 4 + 2) + APPENDED
    room = tl.load(extents + session * 4 + 3)
    edge = tl.maximum(lo, hi - n_local)  # the window's first row
    far_tiles = tl.cdiv(far, BLOCK_N)
    pending_tiles = tl.cdiv(edge - lo, BLOCK_N) if PENDING else 0
    tiles = far_tiles + pending_tiles + tl.cdiv(hi - edge, BLOCK_N)
    first = tiles // SPLITS * split + tl.minimum(tiles % SPLITS, split)
    stop = first + tiles // SPLITS + (split < tiles % SPLITS).to(tl.int32)

    table = addresses + session * 6
    far_k, far_v = tl.load(table), tl.load(table + 1)
    raw, rot, local_v = tl.load(table + 2), tl.load(table + 3), tl.load(table + 4)
    mass = tl.load(table + 5).to(tl.pointer_type(tl.float32))
    near = query_rows(q_near + session * near_session, head, near_head, GROUP, ROWS, DIM, PAD)
    beyond = query_rows(q_far + session * far_session, head, far_head, GROUP, ROWS, DIM, PAD)
    n, g = tl.arange(0, BLOCK_N), tl.arange(0, ROWS)
    far_columns = 0
    if KEEP != NO_LOGITS:
        for other in range(KV_HEADS):
            far_columns = tl.maximum(far_columns, tl.load(lengths + session * KV_HEADS + other))

    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    out = tl.zeros([ROWS, PAD], tl.float32)
    for tile in range(first, stop):
        is_far, is_near = tile < far_tiles, tile >= far_tiles + pending_tiles
        row = tile * BLOCK_N
        row = tl.where(is_far, row, row - far_tiles * BLOCK_N + lo)
        row = tl.where(is_near, row - pending_tiles * BLOCK_N + edge - lo, row)
        live = tl.where(is_far, far, tl.where(is_near, hi, edge)) - row
        start = head.to(tl.int64) * tl.where(is_far, far_room, room) + row
        keys = tl.where(is_far, far_k, tl.where(is_near, rot, raw))
        k = token_rows(keys, start, live, q_near, DIM, PAD, BLOCK_N)
        v = token_rows(tl.where(is_far, far_v, local_v), start, live, q_near, DIM, PAD, BLOCK_N)
        scores = product(tl.where(is_near, near, beyond), tl.trans(k)) * scaling
        if SUM_LOGITS:  # a token does not follow itself
            sums = mass + start + n
            summed = n < tl.where(is_near, tl.minimum(live, hi - 1 - row), 0)
            tl.store(sums, tl.load(sums, summed, 0.0) + tl.sum(scores, 0), summed)
        if SOFTCAP:
            scores = capped(scores, softcap)
        if KEEP != NO_LOGITS:
            column = tl.where(is_far, row, far_columns + row - lo) + n[None]
            read = tl.where(is_near, live, 0) if KEEP == NEAR_LOGITS else live
            wanted = (g[:, None] < GROUP) & (n[None] < read)
            kept = logits + (at * GROUP + g[:, None]).to(tl.int64) * columns + column
            tl.store(kept, scores, wanted)
        scores = tl.where(n[None] < live, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        out = out * shrink[:, None] + product(rounded(weights, v.dtype), v)
        top = higher

    rows = (at * SPLITS + split) * GROUP + g
    tl.store(lses + rows, top + tl.log(total), g < GROUP)
    if stop > first:
        d = tl.arange(0, PAD)[None]
        cells = outs + rows[:, None].to(tl.int64) * DIM + d
        tl.store(cells, out / total[:, None], (g[:, None] < GROUP) & (d < DIM))


def forms(dim: int, dtype: torch.dtype) -> list[Form]:
    """The compiled forms of the op's kernels, for 8 KV heads with groups of 4."""
    from longmem.ops.step_attention.forms import forms_of  # which imports this module

    return forms_of(dim, dtype)
