"""`longmem bench`: the measurements behind the figures in README and docs, on your own machine."""

from __future__ import annotations

import typer

from longmem.cli.bench import decode, recall

__all__ = ["app"]

app = typer.Typer(help="Measure speed and recall on this machine.", no_args_is_help=True)
app.command("recall")(recall.recall)
app.command("decode")(decode.decode)
