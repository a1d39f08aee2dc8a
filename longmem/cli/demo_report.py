"""What `longmem demo` prints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from longmem.cli.common import NANO, readable_bytes

if TYPE_CHECKING:
    from longmem.bench.demo import Answer, Asked, DayOne, DayTwo
    from longmem.bench.wilson import Share

_WIDTH = 96


def begin(screen: Console, day: int, what: str) -> None:
    """The heading of a day; the process number shows that they are two processes."""
    screen.width = min(screen.width, _WIDTH)
    screen.print()
    screen.print(Rule(Text(f"Day {day}: process {os.getpid()} {what}", "bold"), align="left"))


def day_one(screen: Console, day: DayOne, seconds: float) -> None:
    """What was told, and that the process is over."""
    stats = day.stats
    screen.print(
        f"  {stats.tokens:,} tokens in {stats.turns:,} turns hold {day.facts:,} facts, "
        f"{day.updated:,} of them updated later.\n"
        f"  {readable_bytes(stats.bytes_disk)} on disk after {seconds:.1f} s. "
        f"Process {os.getpid()} exits."
    )


def resumed(screen: Console, day: DayTwo, session: str) -> None:
    """That the session is there again."""
    stats = day.session.stats()
    screen.print(
        f"  session {session} resumed in {day.open_seconds:.2f} s: "
        f"{stats.tokens:,} tokens, {stats.turns:,} turns\n"
    )


def question(screen: Console, asked: Asked, number: int, total: int) -> None:
    """One question, where its answer was told, and both replies."""
    about = asked.memory.question
    indent = " " * (len(str(total)) + 3)
    screen.print(Text.assemble((f" {number:>{len(str(total))}}  ", "dim"), (about.text, "bold")))
    changed = "updated" if about.updated else "told"
    where = f"{changed} in turn {about.fact_turn:,}, {asked.tokens_ago:,} tokens ago"
    screen.print(Text.assemble(indent, "expected  ", about.answer, (f"   {where}", "dim")))
    _reply(screen, indent, "memory  ", asked.memory, _recalled(asked))
    _reply(screen, indent, "window  ", asked.window, "")
    screen.print()


def table(screen: Console, day: DayTwo, model: str) -> None:
    """All figures."""
    rows = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "with memory", "window only"):
        rows.add_column(Text(title), header_style="bold", no_wrap=True)
    _recall_rows(rows, day)
    stats = day.session.stats()
    rows.add_row("", "", "")
    rows.add_row("tokens re-read on resume", f"{day.tokens_reread:,}", "")
    rows.add_row("resume to first token", f"{day.first_token_seconds:.2f} s", "")
    for place, count in (
        ("device", stats.bytes_device),
        ("host", stats.bytes_host),
        ("disk", stats.bytes_disk),
    ):
        rows.add_row(f"bytes on {place}", readable_bytes(count), "")
    tokens = f"{stats.tokens:,} tokens, window {day.session.engine.config.n_local:,}"
    screen.print(Rule(Text(f"{Path(model).name}: {tokens}", "bold"), align="left"))
    screen.print(rows)
    screen.print(Padding(Text(_note(model), "dim"), (1, 0, 0, 2)))


def kept(screen: Console, store: Path, session: str, model: str) -> None:
    """How to go on with a store that stays."""
    screen.print(
        f"\n  The session is kept. Talk to it with\n"
        f"  longmem chat --store {store} --session {session} --model {model}",
        soft_wrap=True,
    )


def _recall_rows(rows: Table, day: DayTwo) -> None:
    kinds = (
        ("recall", day.shares(lambda asked: True)),
        ("  of updated facts", day.shares(lambda a: a.memory.question.updated)),
        ("  beyond the window", day.shares(lambda a: not a.in_window)),
    )
    for name, (memory, window) in kinds:
        rows.add_row(name, _percent(memory), _percent(window))
    recalled = [asked.rank is not None for asked in day.asked if not asked.in_window]
    rows.add_row("fact's turn looked up", f"{sum(recalled)}/{len(recalled)}", "")


def _reply(screen: Console, indent: str, name: str, answer: Answer, note: str) -> None:
    mark = ("✓ ", "green") if answer.right else ("✗ ", "red")
    text = " ".join(answer.reply.text.split())
    room = screen.width - len(indent) - len(name) - len(note) - 6
    if len(text) > room:
        text = text[: max(room - 1, 8)] + "…"
    screen.print(Text.assemble(indent, mark, name, text, (f"   {note}" if note else "", "dim")))


def _recalled(asked: Asked) -> str:
    if asked.rank is None:
        return "still in the window" if asked.in_window else "its turn was not looked up"
    place = asked.memory.reply.recalled[asked.rank - 1]
    return f"turn {place.turn.index:,} looked up as no. {asked.rank}, score {place.score:.2f}"


def _percent(share: Share) -> str:
    if not share.total:
        return "none asked"
    low, high = share.interval
    return f"{share.hits}/{share.total} = {share.value:.1%} [{low * 100:.0f}-{high:.0%}]"


def _note(model: str) -> str:
    intervals = "In brackets: the 95 % interval (Wilson)."
    if model == NANO:
        return intervals
    return (
        f"{intervals} nano was trained to answer through a memory, this model was not: what it "
        "misses may be the model's doing or the memory's."
    )
