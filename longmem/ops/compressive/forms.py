"""The compiled forms of this op's kernels, by head dimension and dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from longmem.ops.compressive.kernel import mix_kernel, walk_kernel
from longmem.ops.compressive.launched import OP
from longmem.ops.compressive.state import RULES
from longmem.ops.compressive.tiles import DPFP, ELU, GIVEN
from longmem.ops.kernels import Form, Launch, launch_of

_GROUP = 4
_MAPS = {"elu": (ELU.value, 1), "dpfp": (DPFP.value, 6), "learned": (GIVEN.value, 2)}
"""By feature map, its number for the kernels and F / D."""
_USES = (("elu", "linear"), ("dpfp", "linear"), ("dpfp", "delta"), ("learned", "linear"))
_BUFFERS = ("M_in", "z_in", "M_out", "z_out", "z_spare", "held_out", "mass_out", "added", "fresh")


def forms_of(dim: int, dtype: torch.dtype) -> list[Form]:
    """The maps and rules that differ most, each folded, read and folded, and mixed in."""
    kind, made = "*bf16" if dtype == torch.bfloat16 else "*fp16", []
    for name, rule in _USES:
        number, parts = _MAPS[name]
        sizes = {"MAP": number, "GROUP": _GROUP, "DIM": dim, "WIDTH": parts * dim}
        constants = {**sizes, "RULE": RULES.index(rule)}
        row = "*fp32" if name == "learned" else kind
        variant = f"D={dim} {kind[1:]} {name} {rule}"
        made += [_walk(variant, kind, row, constants, reads) for reads in (False, True)]
        made += [_mix(how, variant, kind, row, constants) for how in ("mix", "mix_step")]
    return made


def _walk(variant: str, kind: str, row: str, sizes: dict[str, Any], reads: bool) -> Form:
    linear, dim = sizes["RULE"] == RULES.index("linear"), sizes["DIM"]
    name = "fold" if linear and not reads else "walk"
    how, splits = launch_of(OP, name, dim), 1
    if name == "fold":
        splits = sizes["WIDTH"] // how.blocks["BLOCK_F"]
        how = replace(how, blocks={**how.blocks, "BLOCK_R": 16})
    types = {"q": row, "k": row, "v": kind} | dict.fromkeys(_BUFFERS, "*fp32") | {"kept": "fp32"}
    strides = ("q_head", "q_token", "k_head", "k_token", "v_head", "v_token")
    types |= dict.fromkeys(("n_keys", "n_query", "chunk", *strides), "i32")
    constants = {**sizes, "READS": reads, "SPLITS": splits, "decay": None}
    if linear:
        constants |= {"added": None, "fresh": None}
    aligned = tuple(each for each in ("q", "k", "v", *_BUFFERS, *strides) if each not in constants)
    variant += ", queries" if reads else ""
    return Form(OP, name, variant, walk_kernel, types, constants, how, aligned)


def _mix(name: str, variant: str, kind: str, row: str, sizes: dict[str, Any]) -> Form:
    how: Launch = launch_of(OP, name, sizes["DIM"])
    buffers = {"out": kind, "q": row, "lse": "*fp32", "M": "*fp32", "z": "*fp32", "gate": "*fp32"}
    buffers["mixed"] = kind
    strides = ("q_head", "q_token", "out_head", "out_token", "mixed_head", "mixed_token")
    types = buffers | dict.fromkeys(("n_query", *strides, "lse_head", "lse_token"), "i32")
    constants = {**sizes, "BY_LSE": True}
    return Form(OP, name, variant, mix_kernel, types, constants, how, (*buffers, *strides))
