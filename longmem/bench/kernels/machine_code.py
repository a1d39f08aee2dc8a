"""Figures of a compiled kernel, from its PTX and from what NVIDIA's tools, which come with Triton, say."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

_LOAD = re.compile(r"\bld\.global\S*?(?:\.v(\d))?\.[bfsu](\d+)\s")
_ASYNC = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\S* \[[^]]*\], *\[[^]]*\], *(\w+)")
_BULK = "cp.async.bulk."
_BULK_BYTES = 16
"""Bulk copies move whole rows; this is the least of them."""
_TENSOR_CORES = re.compile(r"\b(?:wgmma\.mma_async|mma\.sync|tcgen05\.mma)\b")


@dataclass(frozen=True)
class MachineCode:
    """A compiled kernel in figures.

    Args:
        registers: of one thread.
        spilled: bytes of one thread's registers that are kept in local memory.
        load_bytes: of a thread's widest load from global memory; 0 without any.
        tensor_cores: whether it has tensor-core instructions.
    """

    registers: int
    spilled: int
    load_bytes: int
    tensor_cores: bool


def figures(ptx: str, cubin: bytes) -> MachineCode:
    """The figures of one kernel."""
    used = _usage(cubin)
    return MachineCode(
        registers=used["REG"],
        spilled=used["STACK"] + used["LOCAL"],
        load_bytes=widest_load(ptx),
        tensor_cores=_TENSOR_CORES.search(ptx) is not None,
    )


def widest_load(ptx: str) -> int:
    """Bytes of the widest load from global memory, to registers or to shared memory."""
    found = [int(many or 1) * int(bits) // 8 for many, bits in _LOAD.findall(ptx)]
    found += [int(size, 0) for size in _ASYNC.findall(ptx)]
    return max([*found, _BULK_BYTES if _BULK in ptx else 0])


def _usage(cubin: bytes) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        tool = files("triton.backends.nvidia").joinpath("bin", "cuobjdump")
        asked = [str(tool), "--dump-resource-usage", str(path)]
        said = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    return {name: int(n) for name, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", said)}
