"""A recall run as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from longmem.cli.common import readable_bytes

if TYPE_CHECKING:
    from longmem.bench.recall import Cell, Plan, RecallRun
    from longmem.bench.reference import Reference
    from longmem.bench.wilson import Share

_COLUMNS = ("recall", "questions", "block recall", "ms/token", "read/s", "state")


def tables(run: RecallRun, plan: Plan) -> list[Table]:
    """One table per task and length; a line for a task the model cannot do."""
    made = []
    for task in plan.tasks:
        reference = run.references.get(task.name)
        for tokens in plan.lengths:
            cells = [c for c in run.cells if (c.task, c.tokens) == (task.name, tokens)]
            made.append(_table(task.name, tokens, reference, cells, run.able(task.name)))
    return made


def _table(
    task: str, tokens: int, reference: Reference | None, cells: list[Cell], able: bool
) -> Table:
    title = f"{task}, {tokens:,} tokens{_other_length(tokens, cells)}"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.box, table.caption = None, _by_itself(reference)
    table.add_column("preset", overflow="fold")
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        table.add_row(cell.method, *_figures(cell, able))
    if not cells:
        table.add_row("(none run)", "model cannot do it")
    return table


def _other_length(tokens: int, cells: list[Cell]) -> str:
    """Said where what a task tells is longer than the tokens asked for."""
    read = max((cost.tokens for cell in cells for cost in cell.costs), default=tokens)
    return f" asked for, {read:,} told" if read > 1.1 * tokens else ""


def _figures(cell: Cell, able: bool) -> list[str]:
    from longmem.bench.figures import costs

    cost = costs(cell.costs)
    held = cost["bytes_device"] + cost["bytes_host"]
    return [
        percent(cell.score) if able else "model cannot do it",
        f"{cell.score.total:,}",
        percent(cell.found) if cell.found else "",
        f"{cost['ms_per_token']:.2f}",
        f"{cost['read_tokens_per_s']:,.0f}",
        readable_bytes(held),
    ]


def _by_itself(reference: Reference | None) -> str:
    if reference is None:
        return ""
    if reference.share is None:
        return f"its shortest prompt, {reference.tokens:,} tokens, does not fit the model's window"
    share = percent(reference.share)
    fewer = ", with as many keys as fit" if reference.fewer else ""
    return f"the model by itself, dense attention over {reference.tokens:,} tokens{fewer}: {share}"


def percent(share: Share) -> str:
    """A share with its 95 % interval."""
    low, high = share.interval
    return f"{share.value:.1%} [{low:.0%}, {high:.0%}]"
