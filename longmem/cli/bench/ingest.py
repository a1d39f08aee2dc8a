"""`longmem bench ingest`: does reading slow down the more was read before?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from longmem.cli.bench.options import AsJson, Out
from longmem.cli.bench.scaling import (
    FullUpTo,
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
    from longmem.bench.ingest import IngestRun


def ingest(
    tokens: Tokens = None,
    rounds: Rounds = 3,
    full_up_to: FullUpTo = 128_000,
    host_bytes: HostBytes = None,
    changes: Settings = None,
    store: ShelfFolder = None,
    model: Model = NANO,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Tokens read and committed per second by length of the history, against transformers' prefill
    behind its own cache."""
    lengths = lengths_of(tokens)
    engine = engine_of(model, device, host_bytes, changes)
    from longmem.bench.ingest import measure

    with filled(store, engine, lengths) as shelf:
        run = measure(engine, shelf, lengths, rounds, full_up_to, progress)
    show_ingest(run, about(model, engine), out, as_json)


def show_ingest(run: IngestRun, named: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print a run, and write it where that was asked for."""
    found: dict[str, Any] = run.figures()
    rows = []
    for at, rate in enumerate(run.longmem):
        dense = run.dense[at] if at < len(run.dense) else None
        row = [f"{rate.history:,}", f"{rate.median:,.0f}"]
        row += [times(rate.median / run.longmem[0].median)]
        row += [f"{dense.median:,.0f}" if dense else ""]
        row += [times(found["longmem_to_dense"][at] if dense else None)]
        rows.append(row)
    columns = ["tokens", "tokens/s", "to shortest", "dense tokens/s", "longmem to dense"]
    show("Reading", columns, rows, {**named, "ingest": found}, out, as_json)
