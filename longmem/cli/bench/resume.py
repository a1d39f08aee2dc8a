"""`longmem bench resume`: how soon a stored session replies in a new process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longmem.cli.bench.options import AsJson, Out
from longmem.cli.bench.scaling import (
    HostBytes,
    Rounds,
    Settings,
    ShelfFolder,
    Tokens,
    about,
    engine_of,
    filled,
    lengths_of,
    progress,
    show,
    times,
)
from longmem.cli.common import NANO, Device, Model

if TYPE_CHECKING:
    from longmem.bench.resume import ResumeRun


def resume(
    tokens: Tokens = None,
    rounds: Rounds = 3,
    sample: Annotated[
        int, typer.Option(min=1, help="Tokens of the transcript that are read again to compare.")
    ] = 20_000,
    host_bytes: HostBytes = None,
    changes: Settings = None,
    store: ShelfFolder = None,
    model: Model = NANO,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time to the first token after opening in a new process, by length of the history, against that
    of the live session and against reading the transcript again."""
    lengths = lengths_of(tokens)
    engine = engine_of(model, device, host_bytes, changes)
    from longmem.bench.child import spec_of
    from longmem.bench.resume import measure

    with filled(store, engine, lengths) as shelf:
        run = measure(spec_of(engine, model), shelf, lengths, rounds, sample, progress)
    show_resume(run, about(model, engine), out, as_json)


def show_resume(run: ResumeRun, named: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print a run, and write it where that was asked for."""
    rows = [
        [
            f"{row.history:,}",
            f"{row.first_token_s * 1000:,.1f} ms",
            f"{row.open_s * 1000:,.1f} ms",
            f"{row.live_s * 1000:,.1f} ms",
            f"{row.window_s * 1000:,.1f} ms",
            f"{row.transcript_s:,.1f} s",
            times(row.transcript_s / row.first_token_s),
            f"{row.reread_tokens:,}",
        ]
        for row in run.rows
    ]
    columns = ["tokens", "first token", "of it opening", "live", "read window"]
    columns += ["transcript", "slower", "tokens read again"]
    show("Resuming", columns, rows, {**named, "resume": run.figures()}, out, as_json)
