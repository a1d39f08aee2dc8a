"""`longmem demo`: day 1 tells facts and exits; day 2, another process, is asked for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from longmem.cli import demo_report as report
from longmem.cli.common import (
    NANO,
    AsJson,
    Device,
    Model,
    StorePath,
    console,
    load_engine,
    open_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_REPLY_TOKENS = 32
_REPLY_TOKENS_OTHERS = 96  # chat models answer in sentences

Tokens = Annotated[int, typer.Option(min=1, help="Length of day 1, in tokens.")]
Seed = Annotated[int, typer.Option(min=0, help="Another seed is another day.")]
Questions = Annotated[
    int, typer.Option(min=0, help="Most questions asked, spread evenly over the day; 0: all.")
]
Unseen = Annotated[
    bool, typer.Option("--unseen", help="Names, values and phrasings nano was not trained on.")
]
Folder = Annotated[Path, typer.Option("--store")]
Id = Annotated[str, typer.Option("--session")]


def demo(
    tokens: Tokens = 20_000,
    model: Model = NANO,
    seed: Seed = 1,
    questions: Questions = 40,
    unseen: Unseen = False,
    store: StorePath = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Tell facts all day, exit, and ask for them the next day, in another process.

    Day 1 holds about two facts per 1,000 tokens of chatter; some change later, and then the last
    value counts. Day 2 asks for them, and asks the same model with its local window alone. The
    store is a temporary folder unless --store is given.
    """
    session = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    with _kept_or_temporary(store) as folder:
        common = ["--model", model, "--store", str(folder), "--session", session]
        common += ["--device", device] if device else []
        day = ["--tokens", str(tokens), "--seed", str(seed), *["--unseen"] * unseen]
        _process("demo-day1", *common, *day)
        exam = ["--questions", str(questions), *["--kept"] * (store is not None)]
        _process("demo-day2", *common, *exam, *["--json"] * as_json)


def day_one(
    store: Folder,
    session: Id,
    model: Model = NANO,
    tokens: Tokens = 20_000,
    seed: Seed = 1,
    unseen: Unseen = False,
    device: Device = None,
) -> None:
    """Day 1 of `longmem demo`, in a process of its own."""
    screen = console()
    started = time.perf_counter()
    report.begin(screen, 1, f"tells facts between {tokens:,} tokens of chatter")
    engine = load_engine(model, device)
    from longmem.bench.demo import tell_day

    with open_store(store) as opened, _bar(screen, tokens) as advance:
        about = {"model": model}
        day = tell_day(engine, opened, session, tokens, seed, unseen, about, advance)
    report.day_one(screen, day, time.perf_counter() - started)


def day_two(
    store: Folder,
    session: Id,
    model: Model = NANO,
    questions: Questions = 40,
    kept: Annotated[bool, typer.Option("--kept")] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Day 2 of `longmem demo`, in a process of its own."""
    screen = console()
    report.begin(screen, 2, "knows nothing but the store, and is asked for the facts")
    engine = load_engine(model, device)
    from longmem.bench.demo import DayTwo

    day = DayTwo(engine, lambda: open_store(store), session, questions)
    try:
        report.resumed(screen, day, session)
        for number, asked in enumerate(day.ask(_longest_reply(model)), 1):
            report.question(screen, asked, number, len(day.questions))
        report.table(screen, day, model)
        if kept:
            report.kept(screen, store, session, model)
        if as_json:
            print(json.dumps({"model": model, "session": session, **day.figures()}))
    finally:
        day.close()


def _longest_reply(model: str) -> int:
    return _REPLY_TOKENS if model == NANO else _REPLY_TOKENS_OTHERS


@contextmanager
def _kept_or_temporary(store: Path | None) -> Iterator[Path]:
    if store is not None:
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="longmem-demo-") as folder:
        yield Path(folder) / "store"


def _process(command: str, *arguments: str) -> None:
    """Run a hidden command in a new process; its failure, already explained there, is ours."""
    # -P keeps the working directory off the import path: it may be a checkout of longmem itself.
    line = [sys.executable, "-P", "-m", "longmem.cli", command, *arguments]
    code = subprocess.run(line, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}).returncode
    if code != 0:
        raise typer.Exit(code if code > 0 else 128 - code)


@contextmanager
def _bar(screen: Console, tokens: int) -> Iterator[Callable[[int], None]]:
    """A progress bar in tokens; yields what to call with the tokens read so far."""
    columns = (
        TextColumn("  reading"),
        BarColumn(bar_width=36),
        TextColumn("{task.completed:,.0f} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task("", total=tokens)
        yield lambda done: progress.update(task, completed=done)
        progress.update(
            task, total=progress.tasks[task].completed
        )  # a day is never exactly as asked
