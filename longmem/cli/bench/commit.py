"""`longmem bench commit`: what making an exchange durable takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from longmem.cli.common import NANO, Device, Model, readable_bytes

if TYPE_CHECKING:
    from longmem.bench.commit import CommitRun


def commit(
    tokens: Tokens = None,
    rounds: Rounds = 31,
    host_bytes: HostBytes = None,
    changes: Settings = None,
    store: ShelfFolder = None,
    model: Model = NANO,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time and bytes of one more exchange by length of the history, files and database apart."""
    lengths = lengths_of(tokens)
    engine = engine_of(model, device, host_bytes, changes)
    from longmem.bench.commit import measure

    with filled(store, engine, lengths) as shelf:
        run = measure(engine, shelf, lengths, rounds, progress)
    show_commit(run, about(model, engine), out, as_json)


def show_commit(run: CommitRun, named: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print a run, and write it where that was asked for."""
    found: dict[str, Any] = run.figures()
    rows = []
    for cost, ratio in zip(run.costs, found["to_shortest"], strict=True):
        held = cost.medians
        row = [f"{cost.history:,}", f"{held['ms']:.2f}", times(ratio["ms"])]
        for name in ("file_bytes", "database_bytes"):
            size = held[name]
            row += ["" if size is None else readable_bytes(size), times(ratio[name])]
        rows.append(row)
    columns = ["tokens", "ms", "to shortest", "file", "to shortest", "database", "to shortest"]
    show("Committing one exchange", columns, rows, {**named, "commit": found}, out, as_json)
