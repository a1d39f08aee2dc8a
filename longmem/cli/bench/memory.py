"""`longmem bench memory`: does a process that reads on and on grow?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longmem.cli.bench.options import AsJson, Out
from longmem.cli.bench.scaling import (
    HostBytes,
    Settings,
    about,
    engine_of,
    lodging,
    show,
    times,
)
from longmem.cli.common import NANO, Device, Model, readable_bytes

if TYPE_CHECKING:
    from longmem import Engine
    from longmem.bench.memory import MemoryRun

FLAT_FROM = 100_000
_ROWS = 12
FlatFrom = Annotated[
    int, typer.Option(min=1, help="Tokens from which on memory is compared with itself.")
]


def memory(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 200_000,
    flat_from: FlatFrom = FLAT_FROM,
    host_bytes: HostBytes = "256MB",
    changes: Settings = None,
    store: Annotated[
        Path | None,
        typer.Option("--store", file_okay=False, help="An empty folder; default: a temporary one."),
    ] = None,
    model: Model = NANO,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Memory of a process that reads a long history exchange by exchange, by length."""
    engine = engine_of(model, device, host_bytes, changes)
    with lodging(store) as folder:
        run = streamed(engine, model, folder, [tokens], flat_from)
    show_memory(run, about(model, engine), out, as_json)


def streamed(
    engine: Engine, model: str, folder: Path, lengths: list[int], flat_from: int
) -> MemoryRun:
    """Read these lengths in a process of its own; the histories stay in `folder`.

    Raises:
        ConfigError: they lie there already, so that nothing would be read.
    """
    from longmem.bench.child import ask_child, spec_of
    from longmem.bench.memory import MemoryRun
    from longmem.bench.stream import Sample
    from longmem.errors import ConfigError

    spec = spec_of(engine, model)
    found = ask_child("stream", spec, folder=str(folder.absolute()), lengths=lengths)
    samples = [Sample(**sample) for sample in found["samples"]]
    if not samples:
        raise ConfigError(f"{folder} holds these histories already; take an empty folder")
    return MemoryRun(samples, flat_from, found["start"], engine.config.host_bytes)


def show_memory(run: MemoryRun, named: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print a run, and write it where that was asked for."""
    from longmem.bench.telling import spread

    found: dict[str, Any] = run.figures()
    first = next((s for s in run.samples if s.tokens >= run.flat_from), run.samples[-1])
    rows = [
        [
            f"{sample.tokens:,}",
            "" if sample.resident is None else readable_bytes(sample.resident),
            readable_bytes(sample.peak),
            times(sample.peak / first.peak if sample.tokens >= first.tokens else None),
            readable_bytes(sample.bytes_device),
            readable_bytes(sample.bytes_host),
            readable_bytes(sample.kv_bytes),
        ]
        for sample in spread(run.samples, _ROWS)
    ]
    columns = ["tokens", "resident", "peak", f"to {first.tokens:,}", "device", "host", "all K/V"]
    show("Memory of the process", columns, rows, {**named, "memory": found}, out, as_json)
