"""What the kernels share: features of a tile of tokens, and what M and z hold for them."""

# Triton gives the types of a kernel's arguments.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from longmem.ops.compressive.state import COVERED, EPS

ELU = tl.constexpr(0)
"""Features ELU(x) + 1 of rows ``[D]``."""
DPFP = tl.constexpr(1)
"""Features of `features.Dpfp`, of rows ``[D]``."""
GIVEN = tl.constexpr(2)
"""Rows are features already, ``[F]``."""

LINEAR = tl.constexpr(0)
DELTA = tl.constexpr(1)
LITERAL = tl.constexpr(2)
"""The rules, as `state.Rule` names them."""

LEAST = tl.constexpr(EPS)
_COVERED = tl.constexpr(COVERED)


@triton.jit
def exact_product(a, b):
    """``a @ b`` of float32 as three products of TF32 parts: 22 of the 24 bits of each factor count."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def features(x, first, live, MAP: tl.constexpr, DIM: tl.constexpr, BLOCK_F: tl.constexpr):
    """Features first .. first + BLOCK_F of rows at addresses x ``[R]``: ``[R, BLOCK_F]`` float32, 0
    where a row is not live. BLOCK_F divides D, so that a tile lies in one part of DPFP's features."""
    at = tl.arange(0, BLOCK_F)
    if MAP == GIVEN:
        return tl.load(x[:, None] + (first + at)[None, :], mask=live[:, None], other=0.0)
    part = first // DIM
    at += first - part * DIM
    value = tl.load(x[:, None] + at[None, :], mask=live[:, None], other=0.0).to(tl.float32)
    if MAP == ELU:
        made = tl.where(value > 0, value + 1.0, tl.exp(tl.minimum(value, 0.0)))
    else:
        # Part p is r_i r_(i-j) for j = p // 2 + 1 and i in one half of r = [relu(x), relu(-x)]; before
        # a half's first entries come the last ones of the other half, which are of the other sign.
        before = at - (part // 2 + 1)
        wraps = before < 0
        before = tl.where(wraps, before + DIM, before)
        other = tl.load(x[:, None] + before[None, :], mask=live[:, None], other=0.0).to(tl.float32)
        other = tl.where(wraps[None, :], -other, other)
        sign = tl.where(part % 2 == 0, 1.0, -1.0)
        made = tl.maximum(sign * value, 0.0) * tl.maximum(sign * other, 0.0)
    return tl.where(live[:, None], made, 0.0)


@triton.jit
def held_for(
    x, live, M, z, columns,
    MAP: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """phi(x) M ``[R, N]`` in some columns, phi(x) z ``[R]`` and |phi(x)|^2 ``[R]``, of rows at x ``[R]``.

    M and z are the addresses of one KV head's ``[F, D]`` and ``[F]``.
    """
    held = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
    mass = tl.zeros((BLOCK_R,), tl.float32)
    square = tl.zeros((BLOCK_R,), tl.float32)
    inside = (columns < DIM)[None, :]
    for first in range(0, WIDTH, BLOCK_F):
        phi = features(x, first, live, MAP, DIM, BLOCK_F)
        at = first + tl.arange(0, BLOCK_F)
        part = tl.load(M + at[:, None] * DIM + columns[None, :], mask=inside, other=0.0)
        held += exact_product(phi, part)
        mass += tl.sum(phi * tl.load(z + at)[None, :], 1)
        square += tl.sum(phi * phi, 1)
    return held, mass, square


@triton.jit
def covered_by(mass, square):
    """How much of features z covers ``[R]``; and the factor of what M holds for them, under "delta"."""
    covered = mass / tl.maximum(square, LEAST)
    return covered, tl.minimum(covered / _COVERED, 1.0)
