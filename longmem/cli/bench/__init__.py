"""`longmem bench`: the measurements behind the figures in README and docs, on your own machine."""

from __future__ import annotations

import typer

from longmem.cli.bench import decode, perplexity, recall, recycled

__all__ = ["app"]

app = typer.Typer(help="Measure speed and recall on this machine.", no_args_is_help=True)
app.command("recall")(recall.recall)
app.command("perplexity")(perplexity.perplexity)
app.command("recycled")(recycled.recycled)
app.command("decode")(decode.decode)
