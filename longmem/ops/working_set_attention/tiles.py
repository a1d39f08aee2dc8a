"""What the prefill kernels do with one tile of keys."""

# Triton gives the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from longmem.ops.kernels.product import product
from longmem.ops.kernels.rounded import rounded

LOG2E = tl.constexpr(1.4426950408889634)
"""Logits are kept in units of log 2, so that exp is the one instruction the hardware has."""
NOTHING = tl.constexpr(-1.0e30)
"""The greatest logit before any key was met; finite, because a difference is taken of it."""


@triton.jit
def tile_of(
    base, start, length,
    STEP: tl.constexpr, TILE: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """Rows start .. start + TILE of ``[length, DIM]`` as ``[TILE, WIDE]``.

    Args:
        base: address of row 0.
        length: rows there are; those beyond are 0. Read only with BOUND.
        STEP: elements from row to row; known when compiling, so that the rows of a thread differ by
            constants and not by registers.
        WIDE: DIM, or the next power of two; columns from DIM on are 0.
    """
    row = tl.arange(0, TILE)
    column = tl.arange(0, WIDE)
    at = base + tl.cast(start, tl.int64) * STEP + row[:, None] * STEP + column[None, :]
    if BOUND:
        there = (start + row)[:, None] < length
        if WIDE > DIM:
            there = there & (column < DIM)[None, :]
        return tl.load(at, mask=there, other=0.0)
    if WIDE > DIM:
        return tl.load(at, mask=(column < DIM)[None, :], other=0.0)
    return tl.load(at)


@triton.jit
def capped(logits, scaling, cap):
    """``cap * tanh(scaling * logits / cap)``; where tanh is 1, exp is kept from overflowing."""
    x = tl.minimum(tl.maximum(logits * (scaling * (2.0 * LOG2E) / cap), -64.0), 64.0)
    return cap - (2.0 * cap) / (1.0 + tl.exp2(x))


@triton.jit
def weigh(sums, top, total, logits, scale, v):
    """Take one tile of keys into the running softmax.

    Args:
        sums: ``[TILE_Q, WIDE]`` values weighted so far, as if `top` were 0.
        top: ``[TILE_Q]`` greatest logit so far times `scale`.
        total: ``[TILE_Q]`` the denominator so far, as if `top` were 0.
        logits: ``[TILE_Q, TILE_K]``, -inf where a key is not met.
        scale: > 0, what makes `logits` powers of two.
        v: ``[TILE_K, WIDE]`` the keys' values.
    """
    higher = tl.maximum(top, tl.max(logits, 1) * scale)
    weights = tl.exp2(logits * scale - higher[:, None])
    fade = tl.exp2(top - higher)
    total = total * fade + tl.sum(weights, 1)
    sums = sums * fade[:, None]
    sums += product(rounded(weights, v.dtype), v)
    return sums, higher, total


@triton.jit
def over(
    state, q, keys, part, asked,
    MET: tl.constexpr, CAPPED: tl.constexpr, TILE_K: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Take some tiles of one range of keys into the running softmax.

    Args:
        state: sums, top and total as `weigh` has them.
        q: ``[TILE_Q, WIDE]`` queries.
        keys: addresses of row 0 of the range's keys and values, their number, and the elements from row
            to row of each, which are constants.
        part: first and last (exclusive) of the tiles.
        asked: ``[TILE_Q]`` places of the queries among the local tokens; n_local, factor of the logits
            and softcap.
        MET: which keys a query meets: "all" of whole tiles, those that are "there" (below the range's
            number of rows), those inside its window ("near") or those "beyond" it.
    """
    sums, top, total = state
    k, v, length, K_STEP, V_STEP = keys
    position, n_local, scaling, cap = asked
    first, last = part
    WIDE: tl.constexpr = q.shape[1]
    for tile in range(first, last):
        start = tile * TILE_K
        k_tile = tile_of(k, start, length, K_STEP, TILE_K, DIM, WIDE, MET != "all")
        logits = product(q, tl.trans(k_tile))
        scale = scaling * LOG2E
        if CAPPED:
            logits = capped(logits, scaling, cap)
            scale = LOG2E
        column = tl.arange(0, TILE_K)[None, :]
        if MET == "there":
            logits = tl.where(column < length - start, logits, float("-inf"))
        if MET == "near":
            newest = (position - start)[:, None]
            inside = (column <= newest) & (column > newest - n_local)
            logits = tl.where(inside, logits, float("-inf"))
        if MET == "beyond":
            newest = (position - start)[:, None]
            logits = tl.where(column <= newest - n_local, logits, float("-inf"))
        v_tile = tile_of(v, start, length, V_STEP, TILE_K, DIM, WIDE, MET != "all")
        sums, top, total = weigh(sums, top, total, logits, scale, v_tile)
    return sums, top, total


@triton.jit
def clipped(first, last, passed, share):
    """The part of the tiles first .. last that falls to one share of the keys.

    Args:
        passed: tiles of the ranges before this one.
        share: its tiles, first and last (exclusive), counted over all ranges.
    """
    begin, end = share
    n = last - first
    return (
        first + tl.minimum(tl.maximum(begin - passed, 0), n),
        first + tl.minimum(tl.maximum(end - passed, 0), n),
    )
