"""`longmem bench`: the measurements behind the figures in README and docs, on your own machine."""

from __future__ import annotations

import typer

from longmem.cli.bench import (
    commit,
    decode,
    disk,
    gpu,
    ingest,
    kernels,
    memory,
    perplexity,
    recall,
    recycled,
    resume,
    scale,
    sessions,
)

__all__ = ["app"]

app = typer.Typer(help="Measure speed and recall on this machine.", no_args_is_help=True)
app.command("recall")(recall.recall)
app.command("perplexity")(perplexity.perplexity)
app.command("recycled")(recycled.recycled)
app.command("decode")(decode.decode)
app.command("ingest")(ingest.ingest)
app.command("resume")(resume.resume)
app.command("commit")(commit.commit)
app.command("memory")(memory.memory)
app.command("disk")(disk.disk)
app.command("sessions")(sessions.sessions)
app.command("scale")(scale.scale)
app.command("gpu")(gpu.gpu)
app.command("kernels")(kernels.kernels)
