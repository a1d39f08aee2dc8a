"""What each local key received from the queries that had it in their window."""

# Triton gives the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from longmem.ops.kernels.product import product
from longmem.ops.working_set_attention.rows import queries_of, rows_of
from longmem.ops.working_set_attention.tiles import LOG2E, capped, tile_of


@triton.jit
def gather_weights(
    got, k, lse, queries, sizes, part, start, scaling, cap,
    MET: tl.constexpr, CAPPED: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    """Add the weights that some tiles of queries give to one tile of keys.

    Args:
        got: ``[TILE_Q, TILE_K]`` float32, summed over the tiles of queries so far.
        k: ``[TILE_K, WIDE]`` the keys, rotated.
        lse: address of the heads' log denominators ``[GROUP, T]``.
        queries: address of the heads' queries, elements from head to head and from row to row.
        sizes: T, L and n_local.
        part: first and last (exclusive) of the tiles of queries.
        start: place of the tile's first key.
        MET: "all" where each query has all keys in its window, else "near".
    """
    q, head_step, step = queries
    n_query, n_keys, n_local = sizes
    first, last = part
    TILE_Q: tl.constexpr = got.shape[0]
    for tile in range(first, last):
        head, token, there, position = rows_of(tile, n_query, n_keys, GROUP, TILE_Q)
        q_tile = queries_of(q, head, token, there, head_step, step, DIM, k.shape[1], MET != "all")
        met = tl.load(lse + head * n_query + token)
        logits = product(q_tile, tl.trans(k))
        scale = scaling * LOG2E
        if CAPPED:
            logits = capped(logits, scaling, cap)
            scale = LOG2E
        weights = tl.exp2(logits * scale - (met * LOG2E)[:, None])
        if MET == "near":
            column = tl.arange(0, got.shape[1])[None, :]
            newest = tl.where(there, position - start, -1)[:, None]
            inside = (column <= newest) & (column > newest - n_local)
            weights = tl.where(inside, weights, 0.0)
        got += weights
    return got


@triton.jit(do_not_specialize=["n_query", "n_keys", "n_local"])
def attention_mass(
    q, rot, lse, mass, n_query, n_keys, n_local, scaling, cap, q_head, q_step,
    rot_head, ROT_STEP: tl.constexpr,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, CAPPED: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One tile of keys of one KV head: its weights summed over queries and group, in one order.

    Args:
        mass: ``[H_kv, L]`` float32; all of it is written.
    """
    start = tl.program_id(0) * TILE_K
    kv = tl.program_id(1)
    wide_kv = tl.cast(kv, tl.int64)
    before = n_keys - n_query
    from_token = tl.maximum(start - before, 0)
    to_token = tl.minimum(start + TILE_K - 1 + n_local - before, n_query)
    clear_from = tl.maximum(start + TILE_K - 1 - before, 0) * GROUP
    clear_to = tl.minimum(start + n_local - before, n_query) * GROUP
    first = from_token * GROUP // TILE_Q
    last = tl.maximum(tl.cdiv(to_token * GROUP, TILE_Q), first)
    clear_first = tl.minimum(tl.maximum(tl.cdiv(clear_from, TILE_Q), first), last)
    clear_last = tl.minimum(tl.maximum(clear_to // TILE_Q, clear_first), last)

    k = tile_of(rot + wide_kv * rot_head, start, n_keys, ROT_STEP, TILE_K, DIM, WIDE, True)
    queries = (q + wide_kv * GROUP * q_head, q_head, q_step)
    sizes = (n_query, n_keys, n_local)
    lse += kv * GROUP * n_query
    got = tl.zeros([TILE_Q, TILE_K], tl.float32)
    got = gather_weights(
        got, k, lse, queries, sizes, (first, clear_first), start, scaling, cap,
        "near", CAPPED, GROUP, DIM,
    )  # fmt: skip
    got = gather_weights(
        got, k, lse, queries, sizes, (clear_first, clear_last), start, scaling, cap,
        "all", CAPPED, GROUP, DIM,
    )  # fmt: skip
    got = gather_weights(
        got, k, lse, queries, sizes, (clear_last, last), start, scaling, cap,
        "near", CAPPED, GROUP, DIM,
    )  # fmt: skip
    key = start + tl.arange(0, TILE_K)
    tl.store(mass + wide_kv * n_keys + key, tl.sum(got, 0), mask=key < n_keys)


@triton.jit(do_not_specialize=["n_query"])
def sum_queries(
    q, sums, n_query, q_head, q_step,
    GROUP: tl.constexpr, DIM: tl.constexpr, TILE_T: tl.constexpr, TILE_D: tl.constexpr,
):  # fmt: skip
    """Running sums over the tokens of the queries of one group, for a few of their dimensions.

    Args:
        sums: ``[H_kv, T + 1, DIM]`` float32: row t sums the queries of tokens 0 .. t - 1.
    """
    column = tl.program_id(0) * TILE_D + tl.arange(0, TILE_D)
    kv = tl.cast(tl.program_id(1), tl.int64)
    q += kv * GROUP * q_head
    sums += kv * (n_query + 1) * DIM
    so_far = tl.zeros([TILE_D], tl.float32)
    tl.store(sums + column, so_far, mask=column < DIM)
    for start in range(0, n_query, TILE_T):
        token = start + tl.arange(0, TILE_T)
        there = (token < n_query)[:, None] & (column < DIM)[None, :]
        at = token[:, None] * q_step + column[None, :]
        of_group = tl.zeros([TILE_T, TILE_D], tl.float32)
        for head in tl.static_range(GROUP):
            of_group += tl.load(q + head * q_head + at, mask=there, other=0.0).to(tl.float32)
        running = so_far[None, :] + tl.cumsum(of_group, 0)
        tl.store(sums + (token + 1)[:, None] * DIM + column[None, :], running, mask=there)
        so_far += tl.sum(of_group, 0)


@triton.jit(do_not_specialize=["n_query", "n_keys", "n_local"])
def follower_logits(
    sums, rot, mass, n_query, n_keys, n_local, scaling, rot_head, ROT_STEP: tl.constexpr,
    DIM: tl.constexpr, WIDE: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """Logits of the queries that follow each key inside their windows: by linearity, one product of the
    key and the sum of those queries."""
    start = tl.program_id(0) * TILE_K
    kv = tl.cast(tl.program_id(1), tl.int64)
    key = start + tl.arange(0, TILE_K)
    column = tl.arange(0, WIDE)
    before = n_keys - n_query
    first = tl.minimum(tl.maximum(key + 1 - before, 0), n_query)
    last = tl.minimum(tl.maximum(key + n_local - before, 0), n_query)
    there = (key < n_keys)[:, None] & (column < DIM)[None, :]
    sums += kv * (n_query + 1) * DIM
    upto = tl.load(sums + last[:, None] * DIM + column[None, :], mask=there, other=0.0)
    upto -= tl.load(sums + first[:, None] * DIM + column[None, :], mask=there, other=0.0)
    k = tile_of(rot + kv * rot_head, start, n_keys, ROT_STEP, TILE_K, DIM, WIDE, True)
    tl.store(
        mass + kv * n_keys + key, tl.sum(k.to(tl.float32) * upto, 1) * scaling, mask=key < n_keys
    )
