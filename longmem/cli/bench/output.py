"""Figures as JSON, and the progress of a run on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from longmem.cli.common import console
from longmem.errors import ConfigError


def write_json(figures: dict[str, Any], out: Path | None = None, printed: bool = True) -> None:
    """Figures with what they were measured on and by: one line on standard output, or a file.

    Raises:
        ConfigError: the file could not be written; the figures are on standard output then.
    """
    from longmem.bench.machine import command, commit, machine

    whole = {"command": command(), "commit": commit(), **figures, "machine": machine()}
    failed: OSError | None = None
    if out is not None:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
        except OSError as error:
            failed = error
    if printed or failed is not None:
        typer.echo(json.dumps(whole))
    if failed is not None:
        raise ConfigError(
            f"{out} could not be written: {failed.strerror}; the figures are on standard output"
        )


def screen() -> Console:
    """Where tables go: as wide as the terminal, or wide enough for a file."""
    found = console()
    if not found.is_terminal:
        found.width = 160
    return found


class Bar:
    """A `longmem.bench.watch.Watch` that draws a progress bar on standard error, if that is a
    terminal. A context manager."""

    def __init__(self) -> None:
        errors = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=errors,
            transient=True,
            disable=not errors.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, state="")
        self._total = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def begin(self, what: str, total: int) -> None:
        """As `Watch.begin`."""
        self._total = total
        self._progress.reset(self._task, description=what, total=total, state="")

    def read(self, tokens: int) -> None:
        """As `Watch.read`."""
        state = f"{tokens:,} of {self._total:,} tokens read"
        self._progress.update(self._task, completed=tokens, state=state)

    def asked(self, done: int, total: int) -> None:
        """As `Watch.asked`."""
        state = f"{done} of {total} questions asked"
        self._progress.update(self._task, completed=done, total=total, state=state)
