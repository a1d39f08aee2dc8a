"""Which queries a tile holds: the heads of a group count fastest, then the tokens."""

# Triton gives the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(tile, n_query, n_keys, GROUP: tl.constexpr, TILE_Q: tl.constexpr):
    """The rows of one tile.

    Returns:
        head in the group, token, whether the row is one at all, and its place among the local tokens,
        each ``[TILE_Q]``.
    """
    row = tile * TILE_Q + tl.arange(0, TILE_Q)
    token = row // GROUP
    there = token < n_query
    token = tl.minimum(token, n_query - 1)
    return row % GROUP, token, there, n_keys - n_query + token


@triton.jit
def queries_of(
    q, head, token, there, head_step, step,
    DIM: tl.constexpr, WIDE: tl.constexpr, BOUND: tl.constexpr,
):  # fmt: skip
    """``[TILE_Q, WIDE]`` of one group, 0 beyond DIM and, with BOUND, where there is no query.

    Args:
        q: address of the group's first head.
        head_step, step: elements from head to head, and from token to token.
    """
    column = tl.arange(0, WIDE)
    at = q + (head * head_step + token * step)[:, None] + column[None, :]
    if BOUND:
        return tl.load(at, mask=there[:, None] & (column < DIM)[None, :], other=0.0)
    if WIDE > DIM:
        return tl.load(at, mask=(column < DIM)[None, :], other=0.0)
    return tl.load(at)
