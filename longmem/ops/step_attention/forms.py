"""The compiled forms of this op's kernels, by head dimension and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from longmem.ops.kernels import Form, launch_of
from longmem.ops.step_attention.finishing import finish
from longmem.ops.step_attention.kernel import attend_share
from longmem.ops.step_attention.shapes import OP, Shape, Wanted, take_in_constants
from longmem.ops.step_attention.taking_in import take_in_token

_KV_HEADS, _GROUP = 8, 4
_WANTED = {
    "plain": Wanted(1, True, False, False, None, False),
    "sliding, sinks": Wanted(1, False, False, True, None, False),
    "sums of weights": Wanted(1, True, False, False, "attention", False),
    "sums of logits": Wanted(1, True, False, False, "logits", False),
    "softcap, weights": Wanted(1, True, True, False, None, True),
}
_TABLES = {"addresses": "*i64", "extents": "*i32", "lengths": "*i32"}


def forms_of(dim: int, dtype: torch.dtype) -> list[Form]:
    """Each kernel as layers of 8 KV heads with 4 query heads each use it."""
    kind, shape = "*bf16" if dtype == torch.bfloat16 else "*fp16", Shape(_KV_HEADS, _GROUP, dim)
    made = [_take_in(shape, kind, half) for half in (dim // 2, 0)]
    for name, wanted in _WANTED.items():
        made += [_attend(shape, kind, name, wanted), _finish(shape, kind, name, wanted)]
    return made


def _take_in(shape: Shape, kind: str, half: int) -> Form:
    strides = [f"{x}_{of}" for x in "qkv" for of in ("session", "head")]
    types = dict.fromkeys("qkv", kind) | dict.fromkeys(strides, "i32")
    types |= dict.fromkeys(("cos", "sin"), kind) | _TABLES
    types |= dict.fromkeys(("q_near", "q_far"), kind)
    del types["lengths"]
    constants: dict[str, Any] = dict(take_in_constants(shape, half, False))
    if not half:
        constants |= {"cos": None, "sin": None}
    return _form("take_in", f"{half} pairs", shape, kind, take_in_token, types, constants)


def _attend(shape: Shape, kind: str, name: str, wanted: Wanted) -> Form:
    strides = ("near_session", "near_head", "far_session", "far_head")
    types = {"q_near": kind, "q_far": kind} | dict.fromkeys(strides, "i32") | _TABLES
    types |= dict.fromkeys(("outs", "lses", "logits"), "*fp32")
    types |= {"columns": "i32", "n_local": "i32", "scaling": "fp32", "softcap": "fp32"}
    constants: dict[str, Any] = dict(wanted.attend(shape))
    if not wanted.logits:
        constants["logits"] = None
    return _form("attend", name, shape, kind, attend_share, types, constants)


def _finish(shape: Shape, kind: str, name: str, wanted: Wanted) -> Form:
    types = {"outs": "*fp32", "lses": "*fp32", "sinks": kind} | _TABLES
    types |= {"out": kind, "whole": "*fp32", "logits": "*fp32", "columns": "i32", "n_local": "i32"}
    constants: dict[str, Any] = dict(wanted.finish(shape))
    if not wanted.logits:
        constants["logits"] = None
    if not wanted.sinks:
        constants["sinks"] = None
    return _form("finish", name, shape, kind, finish, types, constants)


def _form(
    name: str,
    variant: str,
    shape: Shape,
    kind: str,
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
) -> Form:
    whatever = ("n_local", "lengths")
    aligned = tuple(
        x for x, of in types.items() if x not in constants and of != "fp32" and x not in whatever
    )
    label = f"D={shape.dim} {kind[1:]} {variant}"
    how = launch_of(OP, name, shape.dim)
    return Form(OP, name, label, kernel, types, constants, how, aligned)
