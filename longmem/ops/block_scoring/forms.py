"""The compiled forms of this op's kernels, by head dimension and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from longmem.ops.block_scoring import passes
from longmem.ops.block_scoring.estimating import estimate_kernel
from longmem.ops.block_scoring.kernel import fold_kernel, tally_kernel
from longmem.ops.block_scoring.select import select_kernel
from longmem.ops.kernels import Form, Launch, launch_of

_RUNS = (4, 16)
_TABLE = {"table": "*i64"}


def forms_of(dim: int, dtype: torch.dtype) -> list[Form]:
    """Those that the default settings need, and some that others do."""
    return [*_fold_forms(dim, dtype), _tally_form(), *_select_forms(), _estimate_form(dim, dtype)]


def _fold_forms(dim: int, dtype: torch.dtype) -> list[Form]:
    kind = _pointer(dtype)
    types = {"queries": kind} | _TABLE | dict.fromkeys(("folded", "tops", "sums"), "*fp32")
    ints = ("q_session", "q_head", "q_row", "n_rows", "columns", "tiles")
    types |= dict.fromkeys(ints, "i32") | {"scaling": "fp32"}
    made = []
    for name, n_rows in (("fold", 4), ("fold_many", 64)):
        for most in _RUNS:
            how, run, tile = passes.fold_launch(n_rows, dim, most)
            constants = {"D": dim, "D_PAD": passes.pad(dim), "TILE": tile, "RUN": run}
            constants["MANY"] = most == _RUNS[-1]
            variant = f"D={dim} {kind[1:]} run={run}"
            multiples = ("q_session", "q_head", "q_row", "columns", "tiles")
            made.append(_form(name, variant, fold_kernel, types, constants, how, multiples))
    return made


def _tally_form() -> Form:
    types = dict.fromkeys(("folded", "tops", "sums"), "*fp32") | _TABLE
    types |= {"scores": "*fp32", "totals": "*fp32"}
    types |= dict.fromkeys(("heads", "n_rows", "columns", "tiles"), "i32")
    how, groups = passes.tally_launch(4)
    constants, multiples = groups | {"FOLDED": 32}, ("columns", "tiles")
    return _form("tally", "R=4", tally_kernel, types, constants, how, multiples)


def _select_forms() -> list[Form]:
    types = {"scores": "*fp32"} | _TABLE | {"names": "*i32", "ids": "*i32", "best": "*fp32"}
    types |= dict.fromkeys(("columns", "per_session", "n", "k"), "i32")
    made = []
    for wide in passes.WIDTHS:
        constants = {"N_OF": "table", "KEEP": False, "WIDE": wide, "K_PAD": passes.LEAST_K}
        how, variant = passes.select_launch(wide), f"{wide} columns"
        made.append(_form("select", variant, select_kernel, types, constants, how, ()))
    return made


def _estimate_form(dim: int, dtype: torch.dtype) -> Form:
    types = {"queries": _pointer(dtype)}
    types |= dict.fromkeys(("summaries", "counts", "peaks", "masses"), "*fp32")
    strides = ("q_head", "q_row", "s_head", "s_channel")
    types |= dict.fromkeys((*strides, "n_rows", "n_groups"), "i32")
    types |= {"scaling": "fp32", "peak": "fp32"}
    how = launch_of("block_scoring", "estimate", dim)
    variant = f"D={dim} {types['queries'][1:]}"
    multiples = ("q_head", "q_row")
    return _form("estimate", variant, estimate_kernel, types, {"D": dim}, how, multiples)


def _form(
    name: str,
    variant: str,
    kernel: Any,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    how: Launch,
    multiples: tuple[str, ...],
) -> Form:
    """A form whose addresses, and these numbers, are multiples of 16, as they are in use."""
    addresses = tuple(name for name, kind in types.items() if kind.startswith("*"))
    aligned = addresses + multiples
    return Form("block_scoring", name, variant, kernel, types, constants, how, aligned)


def _pointer(dtype: torch.dtype) -> str:
    return "*bf16" if dtype == torch.bfloat16 else "*fp16"
