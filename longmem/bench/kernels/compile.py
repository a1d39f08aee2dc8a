"""Every form of every kernel, compiled for a GPU that need not be there, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from longmem.bench.kernels.found import kernel_module, kernel_ops
from longmem.bench.kernels.machine_code import MachineCode, figures
from longmem.errors import ConfigError
from longmem.ops.kernels import DIMS, Form, interpreted

SHARED_BYTES = {80: 163 << 10, 87: 163 << 10, 90: 227 << 10, 100: 227 << 10, 103: 227 << 10}
"""Shared memory one program can have, by compute capability; all others have `LEAST_SHARED`."""
LEAST_SHARED = 99 << 10
"""Of the smaller GPUs since compute capability 8.6."""


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a form.

    Args:
        form: what was compiled.
        target: compute capability, ten times the major one plus the minor.
        shared: bytes of shared memory of one program.
        products: whether it multiplies matrices for which there are tensor cores.
        machine: its machine code's figures.
    """

    form: Form
    target: int
    shared: int
    products: bool
    machine: MachineCode

    @property
    def faults(self) -> list[str]:
        """What must not be, in words; empty where all is well."""
        found, limit = [], SHARED_BYTES.get(self.target, LEAST_SHARED)
        if self.machine.spilled:
            found.append(f"{self.machine.spilled} bytes a thread are spilled")
        if self.shared > limit:
            found.append(f"{self.shared:,} bytes of shared memory, where {limit:,} are there")
        return found

    def row(self) -> dict[str, object]:
        """JSON-able."""
        form, machine = self.form, self.machine
        return {
            "op": form.op,
            "kernel": form.name,
            "variant": form.variant,
            "blocks": dict(form.how.blocks),
            "num_warps": form.how.num_warps,
            "num_stages": form.how.num_stages,
            "registers": machine.registers,
            "spilled_bytes": machine.spilled,
            "shared_bytes": self.shared,
            "load_bytes": machine.load_bytes,
            "multiplies_matrices": self.products,
            "tensor_cores": machine.tensor_cores,
            "faults": self.faults,
        }


def all_forms(dims: Iterable[int], dtype: torch.dtype) -> Iterator[Form]:
    """Every form of every op's kernels.

    Args:
        dims: head dimensions.
        dtype: of queries, keys and values.

    Raises:
        ConfigError: triton is not installed, or kernels are not made for a head dimension.
    """
    if find_spec("triton") is None:
        raise ConfigError(
            "kernels are compiled by triton, which is not installed (it is for Linux)"
        )
    wanted = list(dims)
    if unknown := sorted({*wanted} - {*DIMS}):
        known = ", ".join(map(str, DIMS))
        raise ConfigError(f"no kernels for head dimension {unknown[0]}; they are made for {known}")
    for dim in wanted:
        for op in kernel_ops():
            yield from kernel_module(op).forms(dim, dtype)


def compiled(form: Form, target: int = 90) -> Compiled:
    """Compile a form; no GPU is needed.

    Args:
        form: a kernel with its types.
        target: compute capability, like 90 for Hopper.

    Raises:
        ConfigError: kernels are interpreted in this process, and cannot be compiled.
    """
    if interpreted():
        raise ConfigError(
            "kernels are interpreted in this process (TRITON_INTERPRET=1); compile them in one "
            "that was started without that variable"
        )
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = form.kernel.arg_names
    constants = {**form.constants, **form.how.blocks}
    signature = {name: "constexpr" if name in constants else form.types[name] for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in form.aligned}
    source = ASTSource(fn=form.kernel, signature=signature, constexprs=constants, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=form.how.options)
    machine = figures(made.asm["ptx"], made.asm["cubin"])
    return Compiled(form, target, made.metadata.shared, _products(made.asm["ttir"]), machine)


def _products(ttir: str) -> bool:
    """Whether it multiplies matrices that tensor cores can: not float32 ones to the last bit."""
    return any("tt.dot " in line and "inputPrecision" in line for line in ttir.splitlines())
