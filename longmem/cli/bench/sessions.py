"""`longmem bench sessions`: what many sessions at once get out of one model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longmem.cli.bench.options import AsJson, Out, numbers
from longmem.cli.bench.scaling import (
    HostBytes,
    Rounds,
    Settings,
    about,
    engine_of,
    progress,
    show,
    times,
)
from longmem.cli.common import NANO, Device, Model

if TYPE_CHECKING:
    from longmem.bench.sessions import SessionsRun

NUMBERS = "1,4,16,64"


def sessions(
    number: Annotated[
        list[str] | None,
        typer.Option("--sessions", help="How many at once, with commas.", show_default=NUMBERS),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens each has read.")] = 1000,
    reply_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each reply.")] = 64,
    rounds: Rounds = 3,
    host_bytes: HostBytes = None,
    changes: Settings = None,
    model: Model = NANO,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Total tokens per second of many sessions at once, against one; and whether each says what it
    says alone."""
    numbered = sorted(set(numbers(number or [NUMBERS], "--sessions")))
    engine = engine_of(model, device, host_bytes, changes)
    from longmem.bench.sessions import measure

    run = measure(engine, numbered, tokens, reply_tokens, rounds, progress)
    show_sessions(run, about(model, engine), out, as_json)


def show_sessions(run: SessionsRun, named: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print a run, and write it where that was asked for."""
    found: dict[str, Any] = run.figures()
    rows = [
        [
            f"{each.sessions:,}",
            f"{each.median:,.1f}",
            times(found["to_first"][at]),
            times(found["to_alone"][at]),
            "equal" if not each.differing else f"{len(each.differing)} differ",
        ]
        for at, each in enumerate(run.concurrent)
    ]
    columns = ["sessions", "tokens/s", "to fewest", "to one after another", "replies"]
    show("Sessions at once", columns, rows, {**named, "sessions": found}, out, as_json)
