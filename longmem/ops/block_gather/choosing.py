"""Blocks that the device chose itself, gathered into the working sets of several sessions."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from longmem.ops.kernels import Launch, launch, launch_of
from longmem.ops.scratch import Scratch
from longmem.ops.step_attention.places import Places

_OP = "block_gather"
_ONE_WARP = Launch({}, num_warps=1)


class Told(NamedTuple):
    """What the host is told of look-ups, to be downloaded.

    Args:
        table: ``[S, 6]`` int64 of `longmem.ops.block_scoring.IndexRow`.
        totals: ``[S, columns]`` float32 votes of the candidates.
        votes: ``[S, k]`` float32, out: of the blocks chosen; 0 where there is none.
    """

    table: Tensor
    totals: Tensor
    votes: Tensor


def place_chosen(
    ids: Tensor,
    directories: Tensor,
    places: Places,
    most: int,
    like: Tensor,
    scratch: Scratch,
    told: Told | None = None,
) -> None:
    """Write raw blocks behind the initial tokens of S sessions, in the order of `ids`, and their
    numbers of far tokens into ``places.lengths``. Nothing waits for the device.

    Args:
        ids: ``[S, k]`` int32 numbers of blocks; -1: none.
        directories: ``[S, 2]`` int64: where a session's table of ``[N, 2]`` int64 lies, with a row
            (address, tokens) for each block, on the device or in pinned memory; its initial tokens.
        places: working sets with room for k blocks.
        most: no block has more tokens.
        like: ``[..., D]``, of the dtype of keys and values.
        scratch: where the plan lies meanwhile.
        told: votes to write out.
    """
    sessions, k = ids.shape
    kv_heads, dim, device = places.lengths.shape[1], like.shape[-1], ids.device
    plan = scratch.take("chosen", (3, sessions, k), directories.dtype, device)
    table, totals, votes = told or (directories, None, None)
    launch(
        locate, (sessions,), device, _ONE_WARP,
        ids, directories, plan, places.lengths, table, totals, votes,
        0 if totals is None else totals.shape[1], k,
        KV_HEADS=kv_heads, K_PAD=triton.next_power_of_2(k), KV_PAD=triton.next_power_of_2(kv_heads),
        TELL=told is not None,
    )  # fmt: skip
    how = launch_of(_OP, "gather_raw", dim)
    launch(
        place, (sessions * k, -(-most * dim // how.blocks["ELEMENTS"]), kv_heads), device, how,
        plan, places.addresses, places.extents, like, sessions * k, k, KV_HEADS=kv_heads, DIM=dim,
    )  # fmt: skip


@triton.jit(do_not_specialize=["columns", "k"])  # type: ignore[untyped-decorator]  # triton gives none
def locate(  # type: ignore[no-untyped-def]  # triton gives types
    ids, directories, plan, lengths, table, totals, votes, columns, k,
    KV_HEADS: tl.constexpr, K_PAD: tl.constexpr, KV_PAD: tl.constexpr, TELL: tl.constexpr,
):  # fmt: skip
    """Program (session): where its blocks lie, how many tokens they have, and the rows they go to:
    ``plan`` ``[3, S, k]``."""
    session, sessions = tl.program_id(0), tl.num_programs(0)
    j = tl.arange(0, K_PAD)
    at = session * k + j
    block = tl.load(ids + at, mask=j < k, other=-1).to(tl.int64)
    found = block >= 0
    directory = tl.load(directories + session * 2).to(tl.pointer_type(tl.int64))
    n_init = tl.load(directories + session * 2 + 1)
    row = directory + tl.where(found, block, 0) * 2
    address = tl.load(row, mask=found, other=0)
    tokens = tl.load(row + 1, mask=found, other=0)
    start = n_init + tl.cumsum(tokens, 0) - tokens
    tl.store(plan + at, address, mask=j < k)
    tl.store(plan + sessions * k + at, tokens, mask=j < k)
    tl.store(plan + 2 * sessions * k + at, start, mask=j < k)
    head = tl.arange(0, KV_PAD)
    length = tl.zeros([KV_PAD], tl.int32) + (n_init + tl.sum(tokens)).to(tl.int32)
    tl.store(lengths + session * KV_HEADS + head, length, mask=head < KV_HEADS)
    if TELL:
        first = tl.load(table + session * 6 + 3)
        of = totals + session.to(tl.int64) * columns + tl.where(found, block - first, 0)
        tl.store(votes + at, tl.load(of, mask=found, other=0.0), mask=j < k)


@triton.jit(do_not_specialize=["blocks", "k"])  # type: ignore[untyped-decorator]  # triton gives none
def place(  # type: ignore[no-untyped-def]  # triton gives types
    plan, addresses, extents, like, blocks, k,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Program (block of a session, piece of its run, KV head): payload to rows."""
    entry, head = tl.program_id(0), tl.program_id(2)
    session = entry // k
    length = tl.load(plan + blocks + entry) * DIM
    first = tl.program_id(1) * ELEMENTS
    if first < length:
        here = first + tl.arange(0, ELEMENTS)
        inside = here < length
        kind = tl.pointer_type(like.dtype.element_ty)
        payload = tl.multiple_of(tl.load(plan + entry).to(kind), 16)
        keys = tl.load(payload + head * length + here, mask=inside)
        values = tl.load(payload + (KV_HEADS + head) * length + here, mask=inside)
        room = tl.load(extents + session * 4).to(tl.int64)
        row = (head * room + tl.load(plan + 2 * blocks + entry)) * DIM
        k_rows = tl.multiple_of(tl.load(addresses + session * 6).to(kind), 16)
        v_rows = tl.multiple_of(tl.load(addresses + session * 6 + 1).to(kind), 16)
        tl.store(k_rows + row + here, keys, mask=inside)
        tl.store(v_rows + row + here, values, mask=inside)
