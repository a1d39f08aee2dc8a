"""`longmem bench gpu`: is it right on this GPU, and how fast?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longmem.cli.bench.gpu_tables import closing, heading, told
from longmem.cli.bench.options import names, numbers
from longmem.cli.bench.output import screen, write_json
from longmem.cli.bench.scaling import progress
from longmem.cli.quantities import parse_bytes
from longmem.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from longmem.bench.gpu.plan import Plan
    from longmem.bench.gpu.run import Outcome

ALL = "check,roofline,decode,ingest,memory,sessions"
_JSON, _PICTURE = "gpu.json", "gpu.png"
_FRESH = f"{_JSON}.new"
_VARIABLES = ("LONGMEM_KERNELS", "TRITON_INTERPRET")


def gpu(
    only: Annotated[
        str, typer.Option(help="Sections, with commas; check always comes first.")
    ] = ALL,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of history, like 8K,64K,1M; default: the shape's.")
    ] = None,
    shape: Annotated[str, typer.Option(help="8b (Llama-3.1-8B's) or tiny.")] = "8b",
    codec: Annotated[
        str, typer.Option(help="Of blocks in host memory: exact, int8, int4; auto: what fits.")
    ] = "auto",
    sessions: Annotated[
        str | None, typer.Option(help="Sessions at once, like 1,16; default: the shape's.")
    ] = None,
    ops: Annotated[
        str | None, typer.Option(help="Ops whose kernels are compared and timed; default: all.")
    ] = None,
    dense: Annotated[bool, typer.Option(help="Measure transformers' own caches, too.")] = True,
    compiled: Annotated[
        bool, typer.Option(help="Measure steps that torch compiles, too; takes a minute.")
    ] = True,
    host_bytes: Annotated[
        str | None, typer.Option(help="Host memory for a history, like 100GB; default: the free.")
    ] = None,
    budget_s: Annotated[
        float, typer.Option(min=0, help="Seconds after which no measurement is begun.")
    ] = 540,
    device: Annotated[
        str | None, typer.Option(help="cuda, cuda:1; cpu for the tiny shape in the interpreter.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose the kernels' tile sizes first, and keep them.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", file_okay=False, help=f"Folder of {_JSON} and {_PICTURE}."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one line of JSON after the text.")
    ] = False,
) -> None:
    """Compare every kernel with its naive twin on this GPU, then measure: each op against the least
    time its bytes and operations take; decoding, reading and memory by length of the history, against
    transformers' own caches; many sessions at once.

    Nothing is timed that failed its comparison; the exit code is 1 then.
    """
    where = _device(device)
    import torch

    from longmem.bench.gpu.plan import Plan, lengths_of
    from longmem.bench.gpu.shapes import shape_of

    form = shape_of(shape)
    plan = Plan(
        shape=form,
        device=where or torch.device("cuda"),
        lengths=lengths_of(names(lengths)) if lengths else form.lengths,
        sections=tuple(names(only)),
        sessions=tuple(sorted(numbers([sessions], "--sessions"))) if sessions else form.sessions,
        codec=codec,
        host_bytes=parse_bytes(host_bytes) if host_bytes else None,
        budget_s=budget_s,
        dense=dense,
        compiled=compiled,
        ops=tuple(names(ops)) if ops else None,
    )
    _check_out(out)
    if tune:
        _tune(plan)
    if where is None:
        _tell_no_gpu(out, as_json)
        return
    _check_kernels(plan)
    if not _measured(plan, out, as_json):
        raise typer.Exit(1)


def _check_kernels(plan: Plan) -> None:
    """Refuse to compare the torch forms with themselves.

    Raises:
        ConfigError: kernels do not serve.
    """
    import torch

    from longmem.ops.kernels import kernels_serve

    try:
        serve = kernels_serve(plan.device, torch.bfloat16, plan.shape.dim)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if not serve:
        settings = " and ".join(f"{name}={os.environ.get(name, '')}" for name in _VARIABLES)
        raise ConfigError(
            f"no kernel serves {plan.device} under {settings}, so there is nothing to measure; unset "
            "both, and install triton where it is missing"
        )


def _check_out(out: Path | None) -> None:
    """Refuse a folder that cannot be written to before minutes of work, and not after them."""
    if out is None:
        return
    fresh = out / _FRESH
    try:
        out.mkdir(parents=True, exist_ok=True)
        fresh.touch()
        fresh.unlink()
    except OSError as error:
        raise ConfigError(f"{out} cannot be written to: {error.strerror}") from None


def _device(name: str | None) -> torch.device | None:
    """The device; None where there is no GPU and no other was asked for. On the CPU kernels are let
    run in the interpreter, which has to be asked for before triton is imported."""
    if name == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")
        os.environ.setdefault("LONGMEM_KERNELS", "interpret")
    import torch

    if name is None and not torch.cuda.is_available():
        return None
    from longmem.fit import usable_device

    return usable_device(name or "cuda")


def _tell_no_gpu(out: Path | None, as_json: bool) -> None:
    from longmem.bench.gpu.figures import NO_GPU, nothing_measured

    screen().print(NO_GPU)
    if out is not None and _earlier(out).get("measured"):
        screen().print(f"{out / _JSON} holds figures of a GPU and is left as it is.")
        out = None
    if as_json or out is not None:
        write_json(nothing_measured(), out / _JSON if out else None, as_json)


def _tune(plan: Plan) -> None:
    from longmem.bench.kernels.tune import tune

    tune(plan.ops, plan.shape.dims, progress, str(plan.device))


def _measured(plan: Plan, out: Path | None, as_json: bool) -> bool:
    """Measure, and show each section when it is through; whether all agreed and nothing broke off."""
    from longmem.bench.gpu.run import Run

    earlier = _earlier(out)
    run = Run(plan, progress, lambda outcome: _save(outcome, out, earlier))
    console = screen()
    console.print(heading(plan))
    for section in run.sections():
        console.print("", *told(section, run.outcome), sep="\n")
    console.print("", *closing(run.outcome), sep="\n")
    _save(run.outcome, out, earlier, printed=as_json)
    return run.outcome.right


def _earlier(out: Path | None) -> dict[str, Any]:
    """What an earlier run left there.

    Raises:
        ConfigError: it is not what a run leaves.
    """
    if out is None or not (out / _JSON).exists():
        return {}
    try:
        found = json.loads((out / _JSON).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{out / _JSON} cannot be read: {error}; move it away") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{out / _JSON} holds no figures; move it away")
    return found


def _save(
    outcome: Outcome, out: Path | None, earlier: dict[str, Any], printed: bool = False
) -> None:
    """Write the figures so far, and their picture. The file is replaced as a whole: a run that is
    killed leaves the one before."""
    from longmem.bench.gpu.figures import figures, with_earlier
    from longmem.bench.gpu.plot import draw
    from longmem.bench.machine import command, commit

    named = {"command": command(), "commit": commit()}
    found = with_earlier({**named, **figures(outcome)}, earlier)
    if printed or out is not None:
        write_json(found, out / _FRESH if out else None, printed)
    if out is not None:
        (out / _FRESH).replace(out / _JSON)
        draw(found, out / _PICTURE)
