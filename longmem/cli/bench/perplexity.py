"""`longmem bench perplexity`: how well a long text is predicted through a memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from longmem.cli.bench.options import AsJson, Changes, Out, Presets, names
from longmem.cli.bench.output import Bar, screen, write_json
from longmem.cli.common import NANO, Device, Model, load_engine, read_utf8

if TYPE_CHECKING:
    from longmem.bench.perplexity import TextScore


def perplexity(
    file: Annotated[
        Path, typer.Option("--file", exists=True, dir_okay=False, help="A text, UTF-8.")
    ],
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of it that are read.")] = 20_000,
    scored_from: Annotated[
        int | None,
        typer.Option("--from", min=1, help="First token scored.", show_default="n_local"),
    ] = None,
    span: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens under one choice of blocks.", show_default="lookup_span"),
    ] = None,
    presets: Presets = "streaming-llm,longmem",
    changes: Changes = None,
    model: Model = NANO,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Nats per token of a text, and what each memory is worth against the first preset.

    Blocks are chosen by the queries of the span before, so that no token is predicted with
    anything that comes after it; every span is read twice for that.
    """
    text = read_utf8(file, "--file")
    engine = load_engine(model, device)
    from longmem.bench.methods import methods, parse_changes
    from longmem.bench.perplexity import measure, read_text

    compared = methods(engine.config, names(presets), parse_changes(changes or []))
    ids = read_text(engine, text, tokens)
    first, size = scored_from or engine.config.n_local, span or engine.config.lookup_span
    with Bar() as bar:
        scores = measure(engine, compared, ids, first, size, bar)
    base = next(iter(scores.values()))
    screen().print(_table(scores, base, first))
    if as_json or out is not None:
        rows = [_row(name, score, base) for name, score in scores.items()]
        settings = {m.name: m.config.model_dump(mode="json") for m in compared}
        about = {"model": model, "tokens": tokens, "from": first, "span": size}
        write_json({**about, "settings": settings, "rows": rows}, out, as_json)


def _row(name: str, score: TextScore, base: TextScore) -> dict[str, object]:
    from longmem.bench.perplexity import difference

    apart = difference(score, base)
    return {
        "preset": name,
        "nats_per_token": score.nats_per_token,
        "perplexity": score.perplexity,
        "scored": len(score.nats),
        "difference": apart.nats,
        "difference_margin": apart.margin,
        "seconds": round(score.seconds, 2),
    }


def _table(scores: dict[str, TextScore], base: TextScore, first: int) -> Table:
    from longmem.bench.perplexity import difference

    title = f"{len(base.nats):,} tokens from {first:,} on"
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("preset")
    for name in ("nats/token", "perplexity", "difference", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, score in scores.items():
        apart = difference(score, base)
        less = "" if score is base else f"{apart.nats:+.4f} ± {apart.margin:.4f}"
        table.add_row(
            name,
            f"{score.nats_per_token:.4f}",
            f"{score.perplexity:.3f}",
            less,
            f"{score.seconds:.1f}",
        )
    return table
