"""`longmem bench disk`: files and bytes of a long history, and of blocks under each codec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longmem.cli.bench.memory import streamed
from longmem.cli.bench.options import AsJson, Out, names
from longmem.cli.bench.scaling import HostBytes, Settings, about, engine_of, lodging, progress, show
from longmem.cli.common import NANO, Device, Model, readable_bytes

if TYPE_CHECKING:
    from longmem.bench.disk import Coded
    from longmem.bench.stream import Sample

CODED_TOKENS = 20_000


def disk(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 64_000,
    codecs: Annotated[
        str, typer.Option(help="Codecs whose payload is compared, with commas; may be empty.")
    ] = "bf16,int8,int4",
    codec_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens stored under each codec.")
    ] = CODED_TOKENS,
    host_bytes: HostBytes = None,
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
    """Files, bytes and bytes written of a history read exchange by exchange, against its keys and
    values; and what closed blocks take under each codec, against bfloat16."""
    engine = engine_of(model, device, host_bytes, changes)
    from longmem.bench.disk import coded

    with lodging(store) as folder:
        samples = streamed(engine, model, folder / "stream", [tokens], tokens).samples
        found = coded(engine, names(codecs), codec_tokens, folder / "codecs", progress)
    show_disk(samples, found, about(model, engine), out, as_json)


def show_disk(
    samples: Sequence[Sample],
    codecs: Sequence[Coded],
    named: dict[str, Any],
    out: Path | None,
    as_json: bool,
) -> None:
    """Print what was found, and write it where that was asked for."""
    from longmem.bench.disk import coded_figures, disk_figures

    found: dict[str, Any] = disk_figures(samples)
    rows = [[name, f"{found[name]:,}"] for name in ("tokens", "turns", "files")]
    for name in ("kv_bytes", "file_bytes", "files_written", "database_bytes", "database_written"):
        rows.append([name, "" if found[name] is None else readable_bytes(found[name])])
    for name in ("files_to_kv", "written_to_kv", "database_written_to_kv"):
        rows.append([name, "" if found[name] is None else f"{found[name]:.3f}"])
    for each in codecs:
        rows.append([f"{each.codec} to bf16", "" if each.ratio is None else f"{each.ratio:.3f}"])
    figures = {**named, "disk": found, "codecs": coded_figures(codecs)}
    show("On disk", ["figure", "value"], rows, figures, out, as_json)
