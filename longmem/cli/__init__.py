"""The `longmem` command. Torch and transformers load only once a command needs them."""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated

import typer

from longmem import __version__
from longmem.cli import bench, calibrate, chat, demo, mcp, serve, sessions
from longmem.errors import FingerprintMismatchError, LongMemError

__all__ = ["main"]

app = typer.Typer(
    help="Unbounded, resumable conversations for any Hugging Face decoder.",
    epilog="Start with: longmem demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("demo-day1", hidden=True)(demo.day_one)
app.command("demo-day2", hidden=True)(demo.day_two)
app.command("chat")(chat.chat)
app.command("calibrate")(calibrate.calibrate)
app.command("serve")(serve.serve)
app.command("mcp")(mcp.mcp)
app.add_typer(sessions.app, name="sessions")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longmem {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """What every command shares."""


def main() -> None:
    """Run the command line; errors that longmem raises on purpose are one message, exit code 1."""
    # Torch's threads wait by spinning; beside another busy process that made nano 60 times slower.
    # Read when torch is loaded, which no command has done yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows a mark
    try:
        _run()
    except BrokenPipeError:  # whoever read the output, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        sys.exit(1)
    except (LongMemError, OSError) as error:
        print(f"longmem: {error}", file=sys.stderr)
        if isinstance(error, FingerprintMismatchError):
            print("longmem: on the command line: --model NAME, or --rebuild", file=sys.stderr)
        sys.exit(1)


def _run() -> None:
    """The command, with all of its output written: what Python flushes at exit fails unseen."""
    try:
        app()
    finally:
        sys.stdout.flush()
