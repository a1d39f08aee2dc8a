"""`longmem bench scale`: one history to a million tokens, and every benchmark over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longmem.cli.bench.commit import show_commit
from longmem.cli.bench.decode import show_decode
from longmem.cli.bench.disk import CODED_TOKENS, show_disk
from longmem.cli.bench.ingest import show_ingest
from longmem.cli.bench.memory import FLAT_FROM, FlatFrom, show_memory, streamed
from longmem.cli.bench.options import names, numbers
from longmem.cli.bench.resume import show_resume
from longmem.cli.bench.scaling import (
    FullUpTo,
    HostBytes,
    Settings,
    ShelfFolder,
    Tokens,
    about,
    engine_of,
    lengths_of,
    lodging,
    progress,
)
from longmem.cli.bench.sessions import NUMBERS, show_sessions
from longmem.cli.common import NANO, Device, Model

if TYPE_CHECKING:
    from longmem import Engine

LENGTHS = "8000,32000,64000,128000,256000,1000000"
ALL = "memory,disk,decode,ingest,resume,commit,sessions"


def scale(
    tokens: Tokens = None,
    out: Annotated[
        Path, typer.Option("--out", file_okay=False, help="Folder of the JSON files, one each.")
    ] = Path("results"),
    only: Annotated[str, typer.Option(help="Which of them, with commas.")] = ALL,
    full_up_to: FullUpTo = 128_000,
    flat_from: FlatFrom = FLAT_FROM,
    number: Annotated[str, typer.Option("--sessions", help="Sessions at once.")] = NUMBERS,
    codec_tokens: Annotated[int, typer.Option(min=1, help="Tokens under each codec.")] = (
        CODED_TOKENS
    ),
    host_bytes: HostBytes = "256MB",
    changes: Settings = None,
    store: ShelfFolder = None,
    model: Model = NANO,
    device: Device = None,
) -> None:
    """Read one history, exchange by exchange, and measure everything over it at these lengths.

    With --store the histories stay for further runs; memory and disk are measured while they are
    read, and are left out where nothing is left to read.
    """
    lengths, chosen = lengths_of(tokens, LENGTHS), names(only)
    wrong = sorted({*chosen} - {*names(ALL)})
    if wrong:
        raise typer.BadParameter(f"{', '.join(wrong)}; choose from {ALL}", param_hint="--only")
    many = numbers([number], "--sessions")
    engine = engine_of(model, device, host_bytes, changes)
    with lodging(store) as folder:
        run = _Run(engine, model, folder, lengths, out)
        run.read(chosen, flat_from, codec_tokens)
        over: dict[str, Callable[[], None]] = {
            "decode": lambda: run.decode(full_up_to),
            "ingest": lambda: run.ingest(full_up_to),
            "resume": run.resume,
            "commit": run.commit,
            "sessions": lambda: run.sessions(many),
        }
        for name in chosen:
            if name in over:
                over[name]()


class _Run:
    """The benchmarks over one shelf, each with a file for its figures."""

    def __init__(
        self, engine: Engine, model: str, folder: Path, lengths: list[int], out: Path
    ) -> None:
        from longmem.bench.shelf import Shelf

        self._engine, self._model, self._lengths, self._out = engine, model, lengths, out
        self._shelf = Shelf(folder, engine)
        self._named = about(model, engine)

    def read(self, chosen: list[str], flat_from: int, codec_tokens: int) -> None:
        """Read what is missing in a process of its own; memory and disk are measured meanwhile."""
        from longmem.bench.disk import CODECS, coded

        if not self._shelf.missing(self._lengths):
            progress("the histories are there; memory and disk are left out")
            return
        run = streamed(self._engine, self._model, self._shelf.folder, self._lengths, flat_from)
        if "memory" in chosen:
            show_memory(run, self._named, self._out / "memory.json", False)
        if "disk" in chosen:
            with lodging(None) as place:
                found = coded(self._engine, CODECS, codec_tokens, place, progress)
            show_disk(run.samples, found, self._named, self._out / "disk.json", False)

    def decode(self, full_up_to: int) -> None:
        """As `longmem bench decode`."""
        from longmem.bench.decode import measure

        run = measure(
            self._engine, self._shelf, self._lengths, dense_up_to=full_up_to, report=progress
        )
        show_decode(run, self._named, self._out / "decode.json", False)

    def ingest(self, full_up_to: int) -> None:
        """As `longmem bench ingest`."""
        from longmem.bench.ingest import measure

        run = measure(
            self._engine, self._shelf, self._lengths, dense_up_to=full_up_to, report=progress
        )
        show_ingest(run, self._named, self._out / "ingest.json", False)

    def resume(self) -> None:
        """As `longmem bench resume`."""
        from longmem.bench.child import spec_of
        from longmem.bench.resume import measure

        spec = spec_of(self._engine, self._model)
        run = measure(spec, self._shelf, self._lengths, report=progress)
        show_resume(run, self._named, self._out / "resume.json", False)

    def commit(self) -> None:
        """As `longmem bench commit`."""
        from longmem.bench.commit import measure

        run = measure(self._engine, self._shelf, self._lengths, report=progress)
        show_commit(run, self._named, self._out / "commit.json", False)

    def sessions(self, many: list[int]) -> None:
        """As `longmem bench sessions`."""
        from longmem.bench.sessions import measure

        run = measure(self._engine, many, report=progress)
        show_sessions(run, self._named, self._out / "sessions.json", False)
