"""Attention over the working set on tensor cores, one online softmax per query."""

# Triton gives the types of what it compiles.
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from longmem.ops.kernels import Form, launch_of
from longmem.ops.kernels.rounded import rounded
from longmem.ops.working_set_attention.mass import attention_mass, follower_logits, sum_queries
from longmem.ops.working_set_attention.rows import queries_of, rows_of
from longmem.ops.working_set_attention.tiles import LOG2E, NOTHING, clipped, over

SIZES = ["n_query", "n_keys", "n_far", "n_local"]
"""Arguments that change from call to call: a kernel is not compiled anew for some of their values."""


@triton.jit
def empty(sinks, head, split, WIDE: tl.constexpr, TILE_Q: tl.constexpr):
    """A running softmax that has met no key, but for the sinks, which the first split counts."""
    sums = tl.zeros([TILE_Q, WIDE], tl.float32)
    top = tl.full([TILE_Q], NOTHING, tl.float32)
    total = tl.zeros([TILE_Q], tl.float32)
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2E
        top = tl.where(split == 0, sink, top)
        total = tl.where(split == 0, 1.0, total)
    return sums, top, total


@triton.jit(do_not_specialize=SIZES)
def attend_tile(
    q_near, q_far, far_k, far_v, raw, rot, v, far_length, sinks, out, lse,
    n_query, n_keys, n_far, n_local, scaling, cap,
    near_head, near_step, far_q_head, far_q_step, out_head, out_step,
    far_k_head, far_v_head, raw_head, rot_head, v_head,
    FAR_K_STEP: tl.constexpr, FAR_V_STEP: tl.constexpr, RAW_STEP: tl.constexpr,
    ROT_STEP: tl.constexpr, V_STEP: tl.constexpr,
    GROUP: tl.constexpr, DIM: tl.constexpr, WIDE: tl.constexpr, CAPPED: tl.constexpr,
    PENDING: tl.constexpr, SPLIT: tl.constexpr, TILE_Q: tl.constexpr, TILE_K: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one group of heads; with SPLIT, over one share of the keys.

    The keys come in four ranges, each a whole number of tiles of its own: far ones; local ones beyond
    the windows of all queries or of some; local ones inside the windows of some or of all; those of
    the tile's own tokens. Only where a window or the causal edge passes through a tile are logits
    masked.
    """
    tile = tl.program_id(0)
    kv = tl.program_id(1)
    head, token, there, position = rows_of(tile, n_query, n_keys, GROUP, TILE_Q)
    before = n_keys - n_query
    first_at = before + tile * TILE_Q // GROUP
    last_at = before + tl.minimum((tile * TILE_Q + TILE_Q - 1) // GROUP, n_query - 1)
    wide_kv = tl.cast(kv, tl.int64)
    far_k += wide_kv * far_k_head
    far_v += wide_kv * far_v_head
    raw += wide_kv * raw_head
    rot += wide_kv * rot_head
    v += wide_kv * v_head

    there_are = n_far
    if far_length is not None:
        there_are = tl.minimum(tl.cast(tl.load(far_length + kv), tl.int32), n_far)
    beyond_all = tl.maximum(first_at - n_local + 1, 0)
    beyond_some = tl.maximum(last_at - n_local + 1, 0)
    far_clear = there_are // TILE_K
    far_last = tl.cdiv(there_are, TILE_K)
    pending_clear = beyond_all // TILE_K
    pending_last = tl.cdiv(beyond_some, TILE_K)
    edge_last = tl.cdiv(last_at + 1, TILE_K)
    near_clear = tl.minimum(pending_last, edge_last)
    near_edge = tl.maximum((first_at + 1) // TILE_K, near_clear)

    near_first = pending_clear
    if not PENDING:
        pending_clear = 0
        pending_last = 0
    n_tiles = far_last + pending_last + edge_last - near_first
    split = tl.program_id(2)
    share = (0, n_tiles)
    if SPLIT:
        splits = tl.num_programs(2)
        share = (split * n_tiles // splits, (split + 1) * n_tiles // splits)
    asked = (position, n_local, scaling, cap)

    state = empty(sinks, kv * GROUP + head, split, WIDE, TILE_Q)
    q_far += wide_kv * GROUP * far_q_head
    q = queries_of(q_far, head, token, there, far_q_head, far_q_step, DIM, WIDE, True)
    far = (far_k, far_v, there_are, FAR_K_STEP, FAR_V_STEP)
    part = clipped(0, far_clear, 0, share)
    state = over(state, q, far, part, asked, "all", CAPPED, TILE_K, DIM)
    part = clipped(far_clear, far_last, far_clear, share)
    state = over(state, q, far, part, asked, "there", CAPPED, TILE_K, DIM)
    if PENDING:
        pending = (raw, v, n_keys, RAW_STEP, V_STEP)
        part = clipped(0, pending_clear, far_last, share)
        state = over(state, q, pending, part, asked, "all", CAPPED, TILE_K, DIM)
        part = clipped(pending_clear, pending_last, far_last + pending_clear, share)
        state = over(state, q, pending, part, asked, "beyond", CAPPED, TILE_K, DIM)

    # This sum is `tile`, which the compiler cannot know, and so keeps no register through the loops
    # for what was derived from `tile` before them; likewise below.
    again = tile + split // tl.num_programs(2)
    head, token, there, _ = rows_of(again, n_query, n_keys, GROUP, TILE_Q)
    q_near += wide_kv * GROUP * near_head
    q = queries_of(q_near, head, token, there, near_head, near_step, DIM, WIDE, True)
    near = (rot, v, n_keys, ROT_STEP, V_STEP)
    passed = far_last + pending_last - near_first
    part = clipped(near_first, near_clear, passed + near_first, share)
    state = over(state, q, near, part, asked, "near", CAPPED, TILE_K, DIM)
    part = clipped(near_clear, near_edge, passed + near_clear, share)
    state = over(state, q, near, part, asked, "all", CAPPED, TILE_K, DIM)
    part = clipped(near_edge, edge_last, passed + near_edge, share)
    state = over(state, q, near, part, asked, "near", CAPPED, TILE_K, DIM)

    sums, top, total = state
    again = tile + kv // tl.num_programs(1)
    head, token, there, _ = rows_of(again, n_query, n_keys, GROUP, TILE_Q)
    column = tl.arange(0, WIDE)
    if SPLIT:
        out += tl.cast(split, tl.int64) * tl.num_programs(1) * GROUP * n_query * DIM
        lse += split * tl.num_programs(1) * GROUP * n_query
    out += (kv * GROUP + head)[:, None] * out_head + token[:, None] * out_step + column[None, :]
    share_of_one = 1.0 / tl.where(total > 0, total, 1.0)  # a split may hold no key of a query
    made = rounded(sums * share_of_one[:, None], out.dtype.element_ty)
    tl.store(out, made, mask=there[:, None] & (column < DIM)[None, :])
    lse += (kv * GROUP + head) * n_query + token
    tl.store(lse, (top + tl.log2(total)) / LOG2E, mask=there)


@triton.jit(do_not_specialize=["n_query", "rows", "splits"])
def combine(
    parts, part_lse, out, lse, n_query, rows, splits, out_head, out_step,
    DIM: tl.constexpr, WIDE: tl.constexpr, TILE_Q: tl.constexpr,
):  # fmt: skip
    """Put the splits' shares of the keys together.

    Args:
        parts: ``[splits, H * T, DIM]`` float32, what each has made of its share.
        part_lse: ``[splits, H * T]``, -inf where a share holds no key of a query.
        rows: H * T.
    """
    row = tl.program_id(0) * TILE_Q + tl.arange(0, TILE_Q)
    there = row < rows
    column = tl.arange(0, WIDE)
    at = row[:, None] * DIM + column[None, :]
    there_all = there[:, None] & (column < DIM)[None, :]
    top = tl.full([TILE_Q], NOTHING, tl.float32)
    for split in range(splits):
        top = tl.maximum(top, tl.load(part_lse + split * rows + row, mask=there, other=0.0))
    sums = tl.zeros([TILE_Q, WIDE], tl.float32)
    total = tl.zeros([TILE_Q], tl.float32)
    for split in range(splits):
        met = tl.load(part_lse + split * rows + row, mask=there, other=0.0)
        weight = tl.exp2((met - top) * LOG2E)
        total += weight
        base = parts + tl.cast(split, tl.int64) * rows * DIM
        sums += weight[:, None] * tl.load(base + at, mask=there_all, other=0.0)
    head = row // n_query
    out += (head * out_head + (row - head * n_query) * out_step)[:, None] + column[None, :]
    tl.store(out, rounded(sums / total[:, None], out.dtype.element_ty), mask=there_all)
    tl.store(lse + row, top + tl.log2(total) / LOG2E, mask=there)


POINTERS = {
    **dict.fromkeys(("q_near", "q_far", "far_k", "far_v", "raw", "rot", "v", "q", "sinks"), "own"),
    **dict.fromkeys(("lse", "parts", "part_lse", "mass", "sums"), "*fp32"),
    "far_length": "*i64",
}
"""Types of the arguments that are addresses; "own": the queries' type."""


def forms(dim: int, dtype: torch.dtype, group: int = 4) -> list[Form]:
    """The compiled forms of the op's kernels, for `group` query heads to a KV head."""
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]

    def form(name: str, kernel: Any, variant: str = "", **options: Any) -> Form:
        options["GROUP"] = group
        return _form(name, kernel, f"D={dim} {kind} {variant}".strip(), dim, kind, options)

    return [
        form("attend", attend_tile, sinks=None, far_length=None),
        form("attend", attend_tile, "all options", CAPPED=True),
        form("attend", attend_tile, "sliding", sinks=None, far_length=None, PENDING=False),
        form("attend_split", attend_tile, sinks=None, far_length=None, SPLIT=True),
        form("attend_few", attend_tile, sinks=None, far_length=None),
        form("attend_few_split", attend_tile, sinks=None, far_length=None, SPLIT=True),
        form("combine", combine),
        form("attention_mass", attention_mass),
        form("attention_mass_capped", attention_mass, CAPPED=True),
        form("sum_queries", sum_queries),
        form("follower_logits", follower_logits),
    ]


def _form(
    name: str, kernel: Any, variant: str, dim: int, kind: str, options: dict[str, Any]
) -> Form:
    how = launch_of("working_set_attention", name, dim)
    own = f"*{kind}"
    out = "*fp32" if options.get("SPLIT") else own
    constants: dict[str, Any] = {"CAPPED": False, "PENDING": True, "SPLIT": False}
    constants |= {"DIM": dim, "WIDE": triton.next_power_of_2(dim), **options}
    types = {}
    for arg in kernel.arg_names:
        if arg.endswith("_STEP"):
            constants[arg] = dim
        elif arg in ("scaling", "cap"):
            types[arg] = "fp32"
        elif arg not in constants and arg not in how.blocks:
            types[arg] = out if arg == "out" else POINTERS.get(arg, "i32").replace("own", own)
    constants = {arg: constants[arg] for arg in kernel.arg_names if arg in constants}
    aligned = tuple(arg for arg in types if "*" in types[arg] or arg.endswith(("_head", "_step")))
    return Form("working_set_attention", name, variant, kernel, types, constants, how, aligned)
