"""Blocks decoded, and their keys turned, on the way into a working set."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from longmem.ops.block_gather.plan import Plan
from longmem.ops.kernels import Form, launch, launch_of
from longmem.ops.kernels.rounded import rounded
from longmem.ops.rotary import Angles, Rotary

_OP = "block_gather"
_BITS = {"raw": 0, "bf16": 16, "int8": 8, "int4": 4}
"""Of one code; 0 for values as the model made them."""


class Turn(NamedTuple):
    """How keys are turned: the layer's rotation, cos and sin ``[ranks, R / 2]``."""

    rotary: Rotary
    angles: Angles


@triton.jit
def _scales(at, inside):  # type: ignore[no-untyped-def]  # triton gives types
    """(step, smallest) float32 of int32 words that hold two float16."""
    word = tl.load(at, mask=inside, other=0)
    step = (word & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True)
    smallest = (word >> 16).to(tl.int16).to(tl.float16, bitcast=True)
    return step.to(tl.float32), smallest.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]  # triton gives none
def _raw_values(payload, first_row, here, inside, DIM: tl.constexpr, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]  # triton gives types
    """Float32 of elements `here` of one head's keys or values in ``[2, H_kv, n, D]``."""
    at = tl.multiple_of(payload.to(tl.pointer_type(DTYPE)), 16) + first_row * DIM
    return tl.load(at + here, mask=inside, other=0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]  # triton gives none
def _codes(  # type: ignore[no-untyped-def]  # triton gives types
    payload, tokens, columns, inside, side, head,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Float32 of the codes ``[n, 2, H_kv, D']``, or of the values if these are bfloat16."""
    row = (tokens * 2 + side) * KV_HEADS + head
    if BITS == 16:
        at = tl.multiple_of(payload.to(tl.pointer_type(tl.bfloat16)), 16)
        return tl.load(at + row * DIM + columns, mask=inside, other=0).to(tl.float32)
    behind_scales = payload.to(tl.pointer_type(tl.uint8)) + KV_HEADS * DIM * 4
    at = tl.multiple_of(behind_scales, 16)
    if BITS == 8:
        return tl.load(at + row * DIM + columns, mask=inside, other=0).to(tl.float32)
    half: tl.constexpr = DIM // 2
    byte = tl.load(at + row * half + columns % half, mask=inside, other=0).to(tl.int32)
    return ((byte >> (columns // half * 4)) & 15).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]  # triton gives none
def _decoded(  # type: ignore[no-untyped-def]  # triton gives types
    payload, count, tokens, columns, inside, side: tl.constexpr, head, DTYPE: tl.constexpr,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Keys (side 0) or values (side 1) ``[TOKENS, COLUMNS]`` of a payload, as `Codec.decode` gives them.

    `payload` ends in a bit that tells whether it is raw. A code times a step is exact in float32
    (8 bits times 11), so that there is one rounding in the sum and one to the dtype.
    """
    start = payload - (payload & 1)
    run = (side * KV_HEADS + head) * count
    here = tokens * DIM + columns
    if BITS == 0:
        return rounded(_raw_values(start, run, here, inside, DIM, DTYPE), DTYPE)
    if (payload & 1) != 0:
        x = _raw_values(start, run, here, inside, DIM, DTYPE)
    else:
        x = _codes(start, tokens, columns, inside, side, head, KV_HEADS, DIM, BITS)
        if BITS < 16:
            words = start.to(tl.pointer_type(tl.int32))
            if side == 0:
                step, smallest = _scales(tl.multiple_of(words, 16) + head * DIM + columns, inside)
            else:
                behind_codes = words + KV_HEADS * DIM + count * (2 * KV_HEADS * DIM * BITS // 32)
                step, smallest = _scales(behind_codes + tokens * KV_HEADS + head, inside)
            x = x * step + smallest
    return rounded(x, DTYPE)


@triton.jit  # type: ignore[untyped-decorator]  # triton gives none
def _turned(x, paired, cos, sin, columns, DTYPE: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr):  # type: ignore[no-untyped-def]  # triton gives types  # fmt: skip
    """``x * cos -+ paired * sin``, rounded where `Rotary.rotate` rounds."""
    pair = columns // 2 if INTERLEAVED else columns % HALF
    second = columns % 2 if INTERLEAVED else columns // HALF
    here = columns < 2 * HALF
    c = tl.load(cos + pair, mask=here, other=0).to(tl.float32)
    s = tl.load(sin + pair, mask=here, other=0).to(tl.float32)
    own = rounded(x.to(tl.float32) * c, DTYPE).to(tl.float32)
    other = rounded(paired.to(tl.float32) * s, DTYPE).to(tl.float32)
    turned = rounded(tl.where(second == 0, own - other, own + other), DTYPE)
    return tl.where(here, turned, x)


@triton.jit(  # type: ignore[untyped-decorator]  # triton gives none
    do_not_specialize=["plan_heads"],
    do_not_specialize_on_alignment=["starts", "counts", "ranks"],
)
def gather_decoded(  # type: ignore[no-untyped-def]  # triton gives types
    addresses, starts, counts, ranks, k, v, cos, sin, k_heads, v_heads, plan_heads,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr,
    TURN: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr,
    TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (block, tile of its tokens, KV head)."""
    dtype: tl.constexpr = k.dtype.element_ty
    head = tl.program_id(2)
    at = head * plan_heads + tl.program_id(0)
    count = tl.load(counts + at)
    first = tl.program_id(1) * TOKENS
    if first < count:
        tokens = first + tl.arange(0, TOKENS)[:, None]
        columns = tl.arange(0, COLUMNS)[None, :]
        inside = (tokens < count) & (columns < DIM)
        payload = tl.load(addresses + at)
        keys = _decoded(
            payload, count, tokens, columns, inside, 0, head, dtype, KV_HEADS, DIM, BITS
        )  # fmt: skip
        if TURN:
            partner = columns ^ 1 if INTERLEAVED else (columns + HALF) % (2 * HALF)
            partner = tl.where(columns < 2 * HALF, partner, columns)
            paired = _decoded(
                payload, count, tokens, partner, inside, 0, head, dtype, KV_HEADS, DIM, BITS
            )  # fmt: skip
            turn = tl.load(ranks + at) * HALF
            keys = _turned(keys, paired, cos + turn, sin + turn, columns, dtype, HALF, INTERLEAVED)
        rows = (tl.load(starts + at).to(tl.int64) * DIM) + tokens * DIM + columns
        tl.store(k + head.to(tl.int64) * k_heads + rows, keys, mask=inside)
        values = _decoded(
            payload, count, tokens, columns, inside, 1, head, dtype, KV_HEADS, DIM, BITS
        )  # fmt: skip
        tl.store(v + head.to(tl.int64) * v_heads + rows, values, mask=inside)


def gather_into(plan: Plan, k: Tensor, v: Tensor, payload: str, turn: Turn | None) -> None:
    """Launch `gather_decoded` over all blocks of a plan; arguments as `longmem.ops.block_gather.gather`."""
    heads, _, dim = k.shape
    how = launch_of(_OP, _name(payload, turn is not None), dim)
    cos, sin = (k, k) if turn is None else turn.angles  # not read without a turn
    half = 1 if turn is None else cos.shape[-1]
    tiles = -(-plan.most // how.blocks["TOKENS"])
    launch(
        gather_decoded, (plan.blocks, tiles, heads), k.device, how,
        plan.addresses, plan.starts, plan.counts, plan.ranks, k, v, cos, sin,
        k.stride(0), v.stride(0), plan.head_stride,
        KV_HEADS=heads, DIM=dim, BITS=_BITS[payload],
        TURN=turn is not None, HALF=half,
        INTERLEAVED=turn is not None and turn.rotary.style == "interleaved",
        COLUMNS=triton.next_power_of_2(dim), enable_fp_fusion=False,
    )  # fmt: skip


def decoding_forms(dim: int, dtype: torch.dtype) -> list[Form]:
    """The compiled forms of `gather_decoded`, of 8 KV heads."""
    wanted = [("bf16", False), ("int8", False), ("int4", False), ("raw", True), ("int4", True)]
    return [_form(payload, turned, dim, dtype) for payload, turned in wanted]


def _form(payload: str, turned: bool, dim: int, dtype: torch.dtype) -> Form:
    name = _name(payload, turned)
    kind = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    kv = f"*{kind}"
    types = {
        "addresses": "*i64", "starts": "*i32", "counts": "*i32", "ranks": "*i32",
        "k": kv, "v": kv, "cos": kv, "sin": kv,
        "k_heads": "i32", "v_heads": "i32", "plan_heads": "i32",
    }  # fmt: skip
    constants = {
        "KV_HEADS": 8, "DIM": dim, "BITS": _BITS[payload], "TURN": turned,
        "HALF": dim // 2 if turned else 1, "INTERLEAVED": False,
        "COLUMNS": triton.next_power_of_2(dim),
    }  # fmt: skip
    return Form(
        op=_OP,
        name=name,
        variant=f"D={dim} {kind} {payload}",
        kernel=gather_decoded,
        types=types,
        constants=constants,
        how=launch_of(_OP, name, dim),
        aligned=("addresses", "k", "v", "cos", "sin", "k_heads", "v_heads"),
    )


def _name(payload: str, turned: bool) -> str:
    return "gather_turned" if turned else f"gather_{payload}"
