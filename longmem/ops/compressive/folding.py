"""One chunk of the walk: queries that read M and z, keys and values that change them."""

# Triton gives the types of a kernel's arguments.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from longmem.ops.compressive.tiles import (
    DELTA,
    LEAST,
    LINEAR,
    covered_by,
    exact_product,
    features,
    held_for,
)


@triton.jit
def read_chunk(
    q, held_out, mass_out, M, z, tile, columns, lo, hi, n_query, q_head, q_token,
    MAP: tl.constexpr, RULE: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Numerators and masses of a group's queries lo .. hi, whose addresses begin at q and outputs."""
    n = hi - lo
    for row in range(0, GROUP * n, BLOCK_R):
        rows = row + tl.arange(0, BLOCK_R)
        live = rows < GROUP * n
        of, t = (rows // n).to(tl.int64), (lo + rows % n).to(tl.int64)
        x = q + of * q_head + t * q_token
        held, mass, square = held_for(
            x, live, M, z, columns, MAP, DIM, WIDTH, BLOCK_R, BLOCK_F, BLOCK_N
        )
        if RULE == DELTA:
            _, factor = covered_by(mass, square)
            held *= factor[:, None]
        to = of * n_query + t
        there = live[:, None] & (columns < DIM)[None, :]
        tl.store(held_out + to[:, None] * DIM + columns[None, :], held, mask=there)
        if tile == 0:
            tl.store(mass_out + to, mass, mask=live)


@triton.jit
def correct_chunk(
    k, v, added, fresh, M, z, columns, kept, chunk, k_token, v_token,
    MAP: tl.constexpr, RULE: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """What a chunk adds beyond what M retrieves for its keys: added ``[chunk, D]`` in some columns, and
    under "delta" fresh ``[chunk]``, the share of each key's features that z does not cover."""
    for row in range(0, chunk, BLOCK_T):
        rows = row + tl.arange(0, BLOCK_T)
        live = rows < chunk
        at = rows.to(tl.int64)
        held, mass, square = held_for(
            k + at * k_token, live, M, z, columns, MAP, DIM, WIDTH, BLOCK_T, BLOCK_F, BLOCK_N
        )
        held, mass = kept * held, kept * mass
        if RULE == DELTA:
            covered, factor = covered_by(mass, square)
            held *= factor[:, None]
            tl.store(fresh + rows, tl.minimum(tl.maximum(1.0 - covered, 0.0), 1.0), mask=live)
        there = live[:, None] & (columns < DIM)[None, :]
        value = tl.load(v + at[:, None] * v_token + columns[None, :], mask=there, other=0.0)
        value = value.to(tl.float32) - held / tl.maximum(mass, LEAST)[:, None]
        tl.store(added + rows[:, None] * DIM + columns[None, :], value, mask=there)


@triton.jit
def fold_chunk(
    k, v, added, fresh, M, z, M_new, z_new, columns, lo, hi, kept, chunk, k_token, v_token,
    MAP: tl.constexpr, RULE: tl.constexpr, DIM: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Rows lo .. hi of M and z after a chunk. The chunk is summed by itself before it is added, as
    tensor cores cut off bits of a small summand of a large sum."""
    inside = columns < DIM
    for first in range(lo, hi, BLOCK_F):
        sum_M = tl.zeros((BLOCK_F, BLOCK_N), tl.float32)
        sum_z = tl.zeros((BLOCK_F,), tl.float32)
        for row in range(0, chunk, BLOCK_T):
            rows = row + tl.arange(0, BLOCK_T)
            live = rows < chunk
            at = rows.to(tl.int64)
            there = live[:, None] & inside[None, :]
            phi = features(k + at * k_token, first, live, MAP, DIM, BLOCK_F)
            if RULE == LINEAR:
                value = tl.load(v + at[:, None] * v_token + columns[None, :], mask=there, other=0.0)
            else:
                value = tl.load(added + at[:, None] * DIM + columns[None, :], mask=there, other=0.0)
            sum_M += exact_product(tl.trans(phi), value.to(tl.float32))
            if RULE == DELTA:
                phi *= tl.load(fresh + rows, mask=live, other=0.0)[:, None]
            sum_z += tl.sum(phi, 0)
        at = first + tl.arange(0, BLOCK_F)
        to = at[:, None] * DIM + columns[None, :]
        old = tl.load(M + to, mask=inside[None, :], other=0.0)
        tl.store(M_new + to, kept * old + sum_M, mask=inside[None, :])
        tl.store(z_new + at, kept * tl.load(z + at) + sum_z)
