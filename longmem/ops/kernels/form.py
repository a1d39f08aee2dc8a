"""A kernel with the types of its arguments: what can be compiled for a GPU where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longmem.ops.kernels.configs import Launch


@dataclass(frozen=True)
class Form:
    """One compiled form of a kernel.

    Args:
        op, name: its folder, and its name in `launches.json`.
        variant: what tells forms of one kernel apart, like "D=128 bf16 mass".
        kernel: the function under ``triton.jit``.
        types: by argument, in order, Triton's type: "*bf16", "*i64", "i32", "fp32" ...
        constants: by constexpr argument, its value; tile sizes come from `how`.
        how: its launch.
        aligned: arguments whose address or value is a multiple of 16.
    """

    op: str
    name: str
    variant: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    how: Launch
    aligned: tuple[str, ...] = ()
