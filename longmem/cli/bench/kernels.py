"""`longmem bench kernels`: every kernel compiled for a GPU, which need not be there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from longmem.cli.bench.options import AsJson, Out, numbers
from longmem.cli.bench.scaling import progress, show

if TYPE_CHECKING:
    from longmem.bench.kernels.compile import Compiled

_COLUMNS = (
    "kernel", "form", "warps", "regs", "spilled", "shared", "load", "tensor"
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
    title = f"Kernels for compute capability {target / 10:.1f}, D = {dims}, {dtype}"
    show(title, _COLUMNS, list(_rows(made, dtype)), figures, out, as_json)
    faults = [f"{_name(each)}: {fault}" for each in made for fault in each.faults]
    for fault in faults:
        progress(fault)
    if faults:
        raise typer.Exit(1)


def _name(made: Compiled) -> str:
    return f"{made.form.op}.{made.form.name}, {made.form.variant}"


def _dim(made: Compiled) -> str:
    first = made.form.variant.split()[0]
    return first if first.startswith("D=") else ""


def _rows(made: Sequence[Compiled], dtype: str) -> Iterable[list[str]]:
    """Each op's name, and below it its kernels; what is the same in all rows is in the title."""
    alone = len({_dim(each) for each in made} - {""}) == 1
    for op, forms in groupby(made, lambda each: each.form.op):
        yield [op, *[""] * (len(_COLUMNS) - 1)]
        for each in forms:
            words = each.form.variant.split()
            shared = {dtype, _dim(each)} if alone else {dtype}
            head = [word for word in words[:2] if word not in shared]
            yield _row(each, " ".join([*head, *words[2:]]))


def _row(made: Compiled, variant: str) -> list[str]:
    form, machine = made.form, made.machine
    missing = "missing" if made.products else ""
    return [
        form.name,
        variant,
        str(form.how.num_warps),
        str(machine.registers),
        f"{machine.spilled:,}",
        f"{made.shared:,}",
        str(machine.load_bytes),
        "yes" if machine.tensor_cores else missing,
    ]
