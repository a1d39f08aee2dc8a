"""Blocks as the model made them, copied between their payloads and rows of a buffer.

Of one KV head a payload ``[2, H_kv, n, D]`` holds the keys of n tokens in one piece and their values
in another, and so does a buffer ``[H_kv, room, D]``: what is copied are runs of n * D elements.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from longmem.ops.block_gather.plan import Plan
from longmem.ops.kernels import Form, Launch, launch, launch_of

_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16"}
_OP = "block_gather"


@triton.jit(  # type: ignore[untyped-decorator]  # triton gives none
    do_not_specialize=["plan_heads"],
    do_not_specialize_on_alignment=["starts", "counts"],
)
def gather_raw(  # type: ignore[no-untyped-def]  # triton gives types
    addresses, starts, counts, k, v, k_heads, v_heads, plan_heads,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Program (block, piece of its run, KV head): payload to rows."""
    head = tl.program_id(2)
    at = head * plan_heads + tl.program_id(0)
    length = tl.load(counts + at) * DIM
    first = tl.program_id(1) * ELEMENTS
    if first < length:
        here = first + tl.arange(0, ELEMENTS)
        inside = here < length
        payload = tl.load(addresses + at).to(tl.pointer_type(k.dtype.element_ty))
        payload = tl.multiple_of(payload, 16)
        keys = tl.load(payload + head * length + here, mask=inside)
        values = tl.load(payload + (KV_HEADS + head) * length + here, mask=inside)
        row = tl.load(starts + at).to(tl.int64) * DIM
        tl.store(k + head.to(tl.int64) * k_heads + row + here, keys, mask=inside)
        tl.store(v + head.to(tl.int64) * v_heads + row + here, values, mask=inside)


@triton.jit(  # type: ignore[untyped-decorator]  # triton gives none
    do_not_specialize=["plan_heads"],
    do_not_specialize_on_alignment=["starts", "counts"],
)
def scatter_raw(  # type: ignore[no-untyped-def]  # triton gives types
    addresses, starts, counts, k, v, k_heads, v_heads, plan_heads,
    KV_HEADS: tl.constexpr, DIM: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """Program (block, piece of its run, KV head): rows to payload."""
    head = tl.program_id(2)
    at = head * plan_heads + tl.program_id(0)
    length = tl.load(counts + at) * DIM
    first = tl.program_id(1) * ELEMENTS
    if first < length:
        here = first + tl.arange(0, ELEMENTS)
        inside = here < length
        row = tl.load(starts + at).to(tl.int64) * DIM
        keys = tl.load(k + head.to(tl.int64) * k_heads + row + here, mask=inside)
        values = tl.load(v + head.to(tl.int64) * v_heads + row + here, mask=inside)
        payload = tl.load(addresses + at).to(tl.pointer_type(k.dtype.element_ty))
        payload = tl.multiple_of(payload, 16)
        tl.store(payload + head * length + here, keys, mask=inside)
        tl.store(payload + (KV_HEADS + head) * length + here, values, mask=inside)


def copy(kernel: Any, name: str, plan: Plan, k: Tensor, v: Tensor) -> None:
    """Launch `gather_raw` or `scatter_raw` over all blocks of a plan."""
    heads, _, dim = k.shape
    how = launch_of(_OP, name, dim)
    pieces = -(-plan.most * dim // how.blocks["ELEMENTS"])
    launch(
        kernel, (plan.blocks, pieces, heads), k.device, how,
        plan.addresses, plan.starts, plan.counts, k, v, k.stride(0), v.stride(0), plan.head_stride,
        KV_HEADS=heads, DIM=dim,
    )  # fmt: skip


def forms(dim: int, dtype: torch.dtype) -> list[Form]:
    """The compiled forms of the op's kernels, of 8 KV heads."""
    from longmem.ops.block_gather.decoding import decoding_forms

    raw = {"gather_raw": gather_raw, "scatter_raw": scatter_raw}
    return [
        *(_form(name, kernel, dim, dtype) for name, kernel in raw.items()),
        *decoding_forms(dim, dtype),
    ]


def _form(name: str, kernel: Any, dim: int, dtype: torch.dtype) -> Form:
    kv = f"*{_TYPES[dtype]}"
    types = {
        "addresses": "*i64", "starts": "*i32", "counts": "*i32", "k": kv, "v": kv,
        "k_heads": "i32", "v_heads": "i32", "plan_heads": "i32",
    }  # fmt: skip
    how: Launch = launch_of(_OP, name, dim)
    return Form(
        op=_OP,
        name=name,
        variant=f"D={dim} {_TYPES[dtype]}",
        kernel=kernel,
        types=types,
        constants={"KV_HEADS": 8, "DIM": dim},
        how=how,
        aligned=("addresses", "k", "v", "k_heads", "v_heads"),
    )
