"""Triton kernels of the compressive memory: chunks folded in turn, and outputs mixed with what it holds."""

# Triton gives the types of a kernel's arguments.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from longmem.ops.compressive.folding import correct_chunk, fold_chunk, read_chunk
from longmem.ops.compressive.tiles import DELTA, LEAST, LINEAR, covered_by, held_for
from longmem.ops.kernels import Form
from longmem.ops.kernels.rounded import rounded


@triton.jit(do_not_specialize=["n_keys", "n_query", "chunk"])
def walk_kernel(
    q, k, v, M_in, z_in, M_out, z_out, z_spare, held_out, mass_out, added, fresh, decay,
    kept, n_keys, n_query, chunk, q_head, q_token, k_head, k_token, v_head, v_token,
    MAP: tl.constexpr, RULE: tl.constexpr, READS: tl.constexpr, GROUP: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Walk the chunks of a call in order: read a chunk's queries, then fold its keys and values.

    A program owns BLOCK_N columns of one KV head's M and reads no others. Of z each keeps a copy that
    no other knows, the first tile's in z_out, the others' in z_spare ``[tiles - 1, H_kv, F]``. Under the
    linear rule, and where nothing is read, rows of M are independent, too, and SPLITS programs share
    them.

    Grid: tiles of D, H_kv, SPLITS. added ``[H_kv, chunk, D]`` and fresh ``[tiles, H_kv, chunk]`` are
    scratch of the delta rules; decay ``[H_kv]`` or None, and then `kept` is the one number.
    """
    tile, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    kv_heads = tl.num_programs(1)
    M_now, z_now = M_in + head * WIDTH * DIM, z_in + head * WIDTH
    M_new, z_new = M_out + head * WIDTH * DIM, z_out + head * WIDTH
    if tile > 0:
        z_new = z_spare + ((tile - 1) * kv_heads + head) * WIDTH
    if RULE != LINEAR:
        added += head * chunk * DIM
        fresh += (tile * kv_heads + head) * chunk
    if decay is not None:
        kept = tl.load(decay + head)
    keys, values = k + head * k_head, v + head * v_head
    lo = tl.program_id(2) * (WIDTH // SPLITS)
    skipped = n_keys - n_query
    for start in range(0, n_keys, chunk):
        stop = tl.minimum(start + chunk, n_keys)
        if READS:
            read_chunk(
                q + head * GROUP * q_head, held_out + head * GROUP * n_query * DIM,
                mass_out + head * GROUP * n_query, M_now, z_now, tile, columns,
                tl.maximum(start - skipped, 0), tl.maximum(stop - skipped, 0),
                n_query, q_head, q_token, MAP, RULE, GROUP, DIM, WIDTH, BLOCK_R, BLOCK_F, BLOCK_N,
            )  # fmt: skip
        if stop - start == chunk:
            if RULE != LINEAR:
                correct_chunk(
                    keys, values, added, fresh, M_now, z_now, columns, kept, chunk,
                    k_token, v_token, MAP, RULE, DIM, WIDTH, BLOCK_T, BLOCK_F, BLOCK_N,
                )  # fmt: skip
            tl.debug_barrier()  # all threads have read the old M before any writes over it
            fold_chunk(
                keys, values, added, fresh, M_now, z_now, M_new, z_new, columns,
                lo, lo + WIDTH // SPLITS, kept, chunk, k_token, v_token,
                MAP, RULE, DIM, BLOCK_T, BLOCK_F, BLOCK_N,
            )  # fmt: skip
            tl.debug_barrier()  # the new M is whole before the next chunk reads it
            M_now, z_now = M_new, z_new
        keys += chunk * k_token
        values += chunk * v_token


@triton.jit(do_not_specialize=["n_query", "lse_head"])
def mix_kernel(
    out, q, lse, M, z, gate, mixed,
    n_query, q_head, q_token, out_head, out_token, lse_head, lse_token, mixed_head, mixed_token,
    MAP: tl.constexpr, RULE: tl.constexpr, BY_LSE: tl.constexpr, GROUP: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Attention output joined with what the memory holds: BLOCK_R of the queries of one KV head's group,
    BLOCK_N columns. Grid: tiles of rows, H_kv, tiles of D.

    gate ``[H]`` is the share of the memory or, BY_LSE, what is added to the log of its mass.
    """
    head = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = rows < GROUP * n_query
    of, t = head * GROUP + rows // n_query, (rows % n_query).to(tl.int64)
    held, mass, square = held_for(
        q + of * q_head + t * q_token, live, M + head * WIDTH * DIM, z + head * WIDTH, columns,
        MAP, DIM, WIDTH, BLOCK_R, BLOCK_F, BLOCK_N,
    )  # fmt: skip
    if RULE == DELTA:
        _, factor = covered_by(mass, square)
        held *= factor[:, None]
    mass = tl.maximum(mass, LEAST)
    share = tl.load(gate + of, mask=live, other=0.0)
    if BY_LSE:
        level = share + tl.log(mass)
        level -= tl.load(lse + of * lse_head + t * lse_token, mask=live, other=0.0)
        share = 1.0 / (1.0 + tl.exp(-level))
    there = live[:, None] & (columns < DIM)[None, :]
    at = of * out_head + t * out_token
    near = tl.load(out + at[:, None] + columns[None, :], mask=there, other=0.0).to(tl.float32)
    value, share = held / mass[:, None], share[:, None]
    # from the nearer end, so that a share of 0 or 1 gives exactly one of the two
    toward = share * (value - near)
    joined = tl.where(share < 0.5, near + toward, value - (1.0 - share) * (value - near))
    at = of * mixed_head + t * mixed_token
    joined = rounded(joined, mixed.dtype.element_ty)
    tl.store(mixed + at[:, None] + columns[None, :], joined, mask=there)


def forms(dim: int, dtype: torch.dtype) -> list[Form]:
    """The compiled forms of the op's kernels, for groups of 4 heads."""
    from longmem.ops.compressive.forms import forms_of

    return forms_of(dim, dtype)
