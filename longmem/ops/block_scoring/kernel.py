"""The two passes that score blocks: fold reads every row once, tally counts votes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from longmem.ops.kernels import Form
from longmem.ops.kernels.product import product

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def candidates_of(table, session):  # type: ignore[no-untyped-def]  # triton gives types
    """How many blocks a session may choose from, and which of the held ones is the first."""
    row = table + session * 6
    held, first, stop = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    return (stop - first).to(tl.int32), (first - held).to(tl.int32)


@triton.jit(do_not_specialize=["n_rows"])  # type: ignore[untyped-decorator]  # triton gives none
def fold_kernel(  # type: ignore[no-untyped-def]  # triton gives types
    queries,  # [S, H_kv, R, D] by strides, D side by side
    table,  # [S, 6] int64
    folded,  # [S, H_kv, R, columns] float32: log of the sum of exp(logit) over a block's rows
    tops,  # [S, H_kv, R, tiles] float32: the largest of a tile's folded values
    sums,  # [S, H_kv, R, tiles] float32: the sum of exp(folded - top) over a tile
    q_session,
    q_head,
    q_row,
    n_rows,  # R
    columns,
    tiles,
    scaling,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    ROWS: tl.constexpr,  # query rows of a program
    TILE: tl.constexpr,  # blocks of a program
    RUN: tl.constexpr,  # rows of a block read at once
    MANY: tl.constexpr,  # whether a block may have more rows than RUN
):
    row_tiles = tl.cdiv(n_rows, ROWS)
    tile, row_tile = tl.program_id(0) // row_tiles, tl.program_id(0) % row_tiles
    head, heads, session = tl.program_id(1), tl.num_programs(1), tl.program_id(2)
    n, skip = candidates_of(table, session)
    if tile * TILE >= n:
        return

    kind = queries.dtype  # keys are of the queries' dtype
    keys = tl.multiple_of(tl.load(table + session * 6).to(kind), 16)
    keys += head * tl.load(table + session * 6 + 5) * D
    starts = tl.load(table + session * 6 + 1).to(tl.pointer_type(tl.int32)) + skip + tile * TILE

    row = row_tile * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, D_PAD)
    at = queries + session.to(tl.int64) * q_session + head * q_head + row[:, None] * q_row
    q = tl.load(at + d[None, :], mask=(row < n_rows)[:, None] & (d < D)[None, :], other=0.0)

    place = tl.arange(0, TILE * RUN)  # the rows of a block lie side by side, RUN places each
    alive = tile * TILE + place // RUN < n
    key = tl.load(starts + place // RUN, mask=alive, other=0) + place % RUN
    stop = tl.load(starts + place // RUN + 1, mask=alive, other=0)

    top = tl.full([ROWS, TILE], float("-inf"), tl.float32)
    mass = tl.zeros([ROWS, TILE], tl.float32)
    if MANY:
        for j in range(0, tl.max(stop - key + place % RUN), RUN):
            logits = _logits(q, keys, key + j, stop, scaling, D, D_PAD)
            top, mass = _added(top, mass, tl.reshape(logits, [ROWS, TILE, RUN]))
    else:
        logits = _logits(q, keys, key, stop, scaling, D, D_PAD)
        top, mass = _added(top, mass, tl.reshape(logits, [ROWS, TILE, RUN]))

    block = tile * TILE + tl.arange(0, TILE)
    alive = block < n
    mass = tl.where(alive[None, :], mass, 1.0)
    value = (top + tl.log2(mass)) * _LN2  # -inf where there is no block
    best = tl.max(value, axis=1)
    weight = tl.sum(tl.exp2((value - best[:, None]) * _LOG2E), axis=1)

    line = (session.to(tl.int64) * heads + head) * n_rows + row
    there = row < n_rows
    at = folded + line[:, None] * columns + block[None, :]
    tl.store(at, value, mask=there[:, None] & alive[None, :])
    tl.store(tops + line * tiles + tile, best, mask=there)
    tl.store(sums + line * tiles + tile, weight, mask=there)


@triton.jit  # type: ignore[untyped-decorator]  # triton gives none
def _logits(q, keys, key, stop, scaling, D: tl.constexpr, D_PAD: tl.constexpr):  # type: ignore[no-untyped-def]  # triton gives types
    """``[ROWS, places]``: logits in units of log 2 of the keys at these rows; -inf from `stop` on."""
    d = tl.arange(0, D_PAD)
    there = key < stop
    at = keys + key[:, None] * D + d[None, :]
    k = tl.load(at, mask=there[:, None] & (d < D)[None, :], other=0.0)
    logits = product(q, tl.trans(k)) * (scaling * _LOG2E)
    return tl.where(there[None, :], logits, float("-inf"))


@triton.jit
def _added(top, mass, logits):  # type: ignore[no-untyped-def]  # triton gives types
    """The largest logit and the sum of 2^(logit - largest) of every block, with more logits
    ``[ROWS, TILE, RUN]``."""
    best = tl.maximum(top, tl.max(logits, axis=2))
    shift = tl.where(best == float("-inf"), 0.0, best)  # where there is no block
    new = tl.sum(tl.exp2(logits - shift[:, :, None]), axis=2)
    return best, mass * tl.exp2(top - shift) + new


@triton.jit(do_not_specialize=["heads", "n_rows"])  # type: ignore[untyped-decorator]  # triton gives none
def tally_kernel(  # type: ignore[no-untyped-def]  # triton gives types
    folded,  # [S, H_kv, R, columns] float32
    tops,  # [S, H_kv, R, tiles] float32
    sums,  # [S, H_kv, R, tiles] float32
    table,  # [S, 6] int64
    scores,  # [S, H_kv, columns] float32: votes by KV head
    totals,  # [S, columns] float32: their sum
    heads,  # H_kv
    n_rows,  # R
    columns,
    tiles,
    FOLDED: tl.constexpr,  # blocks of one of these tiles
    HEADS: tl.constexpr,  # KV heads at once
    ROWS: tl.constexpr,  # query rows at once
    TILE: tl.constexpr,  # blocks of a program
    STATS: tl.constexpr,  # tiles at once
):
    tile, session = tl.program_id(0), tl.program_id(1)
    n, _ = candidates_of(table, session)
    if tile * TILE >= n:
        return
    block = tile * TILE + tl.arange(0, TILE)
    alive = block < n
    i = tl.arange(0, HEADS * ROWS)
    head = tl.arange(0, HEADS)
    total = tl.zeros([TILE], tl.float32)
    for head0 in range(0, heads, HEADS):
        votes = tl.zeros([HEADS, TILE], tl.float32)
        for row0 in range(0, n_rows, ROWS):
            there = (head0 + i // ROWS < heads) & (row0 + i % ROWS < n_rows)
            line = (session.to(tl.int64) * heads + head0 + i // ROWS) * n_rows + row0 + i % ROWS
            top, whole = _whole(tops, sums, line, there, tl.cdiv(n, FOLDED), tiles, STATS)
            at = folded + line[:, None] * columns + block[None, :]
            value = tl.load(at, mask=there[:, None] & (block < columns)[None, :], other=0.0)
            value = tl.where(there[:, None] & alive[None, :], value, float("-inf"))
            each = tl.exp2((value - top[:, None]) * _LOG2E) / whole[:, None]
            votes += tl.sum(tl.reshape(each, [HEADS, ROWS, TILE]), axis=1)
        line = session.to(tl.int64) * heads + head0 + head
        at = scores + line[:, None] * columns + block[None, :]
        tl.store(at, votes, mask=(head0 + head < heads)[:, None] & alive[None, :])
        total += tl.sum(votes, axis=0)
    tl.store(totals + session.to(tl.int64) * columns + block, total, mask=alive)


@triton.jit  # type: ignore[untyped-decorator]  # triton gives none
def _whole(tops, sums, line, there, n_tiles, tiles, STATS: tl.constexpr):  # type: ignore[no-untyped-def]  # triton gives types
    """Largest folded value of each line over all its tiles, and the sum of exp(folded - largest); 0 and
    1 where there is no line."""
    top = tl.where(there, float("-inf"), 0.0)
    whole = tl.where(there, 0.0, 1.0)
    for tile0 in range(0, n_tiles, STATS):
        tile = tile0 + tl.arange(0, STATS)
        at = line[:, None] * tiles + tile[None, :]
        held = there[:, None] & (tile < tiles)[None, :]  # what is behind n_tiles may be anything
        mask = there[:, None] & (tile < n_tiles)[None, :]
        best = tl.where(mask, tl.load(tops + at, mask=held, other=0.0), float("-inf"))
        part = tl.where(mask, tl.load(sums + at, mask=held, other=0.0), 0.0)
        new = tl.maximum(top, tl.max(best, axis=1))
        part = tl.sum(part * tl.exp2((best - new[:, None]) * _LOG2E), axis=1)
        whole = whole * tl.exp2((top - new) * _LOG2E) + part
        top = new
    return top, whole


def forms(dim: int, dtype: torch.dtype) -> list[Form]:
    """The compiled forms of all kernels of this op, for keys of a head dimension and dtype."""
    from longmem.ops.block_scoring.forms import forms_of

    return forms_of(dim, dtype)
