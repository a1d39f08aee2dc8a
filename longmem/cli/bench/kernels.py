"""`longmem bench kernels`: every kernel compiled for a GPU, which need not be there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from longmem.cli.bench.options import AsJson, Out, numbers
from longmem.cli.bench.scaling import progress, show

if TYPE_CHECKING:
    from longmem.bench.kernels.compile import Compiled

_COLUMNS = (
    "kernel", "form", "blocks", "warps", "registers", "spilled", "shared", "load", "tensor cores"
)  # fmt: skip


def kernels(
    dims: Annotated[str, typer.Option(help="Head dimensions, with commas.")] = "128",
    dtype: Annotated[
        Literal["bf16", "fp16"], typer.Option(help="Of queries, keys and values.")
    ] = "bf16",
    target: Annotated[
        int, typer.Option(min=80, help="Compute capability without its point: 90 is Hopper.")
    ] = 90,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """What the compiler makes of each kernel: registers, spilled bytes, shared memory, the widest load,
    tensor cores. Fails where one spills or does not fit."""
    import torch

    from longmem.bench.kernels.compile import all_forms, compiled

    kind = torch.bfloat16 if dtype == "bf16" else torch.float16
    made = []
    for form in all_forms(numbers([dims], "--dims"), kind):
        progress(f"{form.op}: {form.name}, {form.variant}")
        made.append(compiled(form, target))
    figures = {"target": target, "dtype": dtype, "forms": [each.row() for each in made]}
    title = f"Kernels for compute capability {target / 10:.1f}"
    show(title, _COLUMNS, [_row(each) for each in made], figures, out, as_json)
    faults = [f"{_name(each)}: {fault}" for each in made for fault in each.faults]
    for fault in faults:
        progress(fault)
    if faults:
        raise typer.Exit(1)


def _name(made: Compiled) -> str:
    return f"{made.form.op}.{made.form.name}, {made.form.variant}"


def _row(made: Compiled) -> list[str]:
    form, machine = made.form, made.machine
    missing = "missing" if made.products else ""
    return [
        f"{form.op}.{form.name}",
        form.variant,
        " ".join(f"{name}={value}" for name, value in form.how.blocks.items()),
        str(form.how.num_warps),
        str(machine.registers),
        f"{machine.spilled:,}",
        f"{made.shared:,}",
        str(machine.load_bytes),
        "yes" if machine.tensor_cores else missing,
    ]
