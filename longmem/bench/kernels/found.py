"""Which ops have kernels: those with a module ``kernel.py`` in their folder."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

import longmem.ops


def kernel_ops() -> list[str]:
    """Folders under `longmem.ops` that hold a ``kernel.py``, in the order of their names."""
    found = pkgutil.walk_packages(longmem.ops.__path__, "longmem.ops.")
    names = [each.name.split(".") for each in found]
    return sorted({parts[2] for parts in names if len(parts) == 4 and parts[3] == "kernel"})


def kernel_module(op: str) -> ModuleType:
    """An op's ``kernel.py``, which imports triton."""
    return importlib.import_module(f"longmem.ops.{op}.kernel")
