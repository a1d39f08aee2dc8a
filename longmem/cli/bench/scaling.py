"""What the benchmarks over long histories share: options, the engine, the shelf of histories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from longmem.cli.bench.options import Changes, numbers
from longmem.cli.bench.output import screen, write_json
from longmem.cli.common import load_engine
from longmem.cli.quantities import parse_bytes

if TYPE_CHECKING:
    from longmem import Engine
    from longmem.bench.shelf import Shelf

LENGTHS = "8000,32000,64000"
Tokens = Annotated[
    list[str] | None,
    typer.Option(
        "--tokens",
        "--history",
        help="Tokens of history, with commas; may be repeated.",
        show_default=LENGTHS,
    ),
]
HostBytes = Annotated[
    str | None,
    typer.Option(help="Budget of blocks in host memory, like 256MB; default: the model's setting."),
]
ShelfFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        file_okay=False,
        help="Keep the histories here for further runs; default: a temporary folder.",
    ),
]
FullUpTo = Annotated[
    int,
    typer.Option(min=0, help="Longest history at which transformers' own cache is measured, too."),
]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds, in which all lengths take turns.")]
Settings = Changes


def lengths_of(given: Sequence[str] | None, default: str = LENGTHS) -> list[int]:
    """The lengths of `--tokens`, shortest first."""
    return sorted(set(numbers(given or [default], "--tokens")))


def engine_of(
    model: str, device: str | None, host_bytes: str | None, changes: Sequence[str] | None
) -> Engine:
    """The engine under the settings of the command line."""
    engine = load_engine(model, device)
    from longmem import Engine
    from longmem.bench.methods import methods, parse_changes

    (own,) = methods(engine.config, ["longmem"], parse_changes(list(changes or [])))
    config = own.config
    if host_bytes is not None:
        config = config.replace(host_bytes=parse_bytes(host_bytes))
    if config == engine.config:
        return engine
    return Engine(engine.model, engine.tokenizer, config, engine.segment_tokens)


@contextmanager
def filled(folder: Path | None, engine: Engine, lengths: Sequence[int]) -> Iterator[Shelf]:
    """A shelf with these lengths, read now unless they lie there already."""
    from longmem.bench.shelf import Shelf

    with lodging(folder) as place:
        shelf = Shelf(place, engine)
        shelf.fill(lengths, progress)
        yield shelf


@contextmanager
def lodging(folder: Path | None) -> Iterator[Path]:
    """The folder, or a temporary one that goes at the end."""
    if folder is not None:
        yield folder
        return
    with TemporaryDirectory(prefix="longmem-bench-") as made:
        yield Path(made)


def progress(line: str) -> None:
    """A line on standard error."""
    typer.echo(line, err=True)


def about(model: str, engine: Engine) -> dict[str, Any]:
    """Model and settings, JSON-able."""
    return {"model": model, "settings": engine.config.model_dump(mode="json")}


def show(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    figures: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    """The table, and the figures where they were asked for."""
    table = Table(title=title, title_justify="left", box=None)
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    screen().print(table)
    if as_json or out is not None:
        write_json(figures, out, as_json)


def times(ratio: float | None) -> str:
    """A ratio: "1.04x", or nothing where there is none."""
    return "" if ratio is None else f"{ratio:,.2f}x"
