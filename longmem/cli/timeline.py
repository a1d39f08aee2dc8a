"""`longmem sessions fork`, `rollback`, `forget`, `erase` and `recall`: the past of a session."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from longmem.cli.common import (
    NANO,
    AsJson,
    Device,
    Model,
    StorePath,
    load_engine,
    open_store,
)
from longmem.errors import InputError

if TYPE_CHECKING:
    from longmem import Recollection, Session

Id = Annotated[str, typer.Argument(metavar="ID", help="The session.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def fork(
    id: Id,
    new: Annotated[str, typer.Argument(metavar="NEW", help="Id of the new session.")],
    at: Annotated[
        int | None,
        typer.Option(help="Index of the last turn it takes over; default: the last one."),
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Owner; default: that of ID.")] = None,
    store: StorePath = None,
) -> None:
    """Begin a new session with the first turns of another. No model runs."""
    from longmem.forking import fork_stored

    with open_store(store) as opened:
        source = opened.open(id)
        try:
            made = fork_stored(opened, source, new, at=at, owner=owner, checked=True)
        finally:
            source.close()
        turns = made.info.n_turns
        made.close()
    typer.echo(f"Session {new}: {turns:,} turns of {id}.")


def rollback(
    id: Id,
    to: Annotated[int, typer.Option(help="Index of the last turn that stays; -1: none does.")],
    store: StorePath = None,
    yes: Yes = False,
) -> None:
    """Go back to an earlier turn: later ones are gone. No model runs."""
    from longmem.boundary import point_behind
    from longmem.forking import window_at

    with open_store(store) as opened:
        handle = opened.open(id)
        try:
            point = point_behind(handle, to, "rollback")
            lost = handle.info.n_turns - point.n_turns
            _make_sure(f"Drop the last {lost:,} turns of session {id}?", id, yes)
            handle.rollback(point.head, window=window_at(opened, handle, point))
        finally:
            handle.close()
    typer.echo(f"Session {id}: {lost:,} turns dropped, {to + 1:,} kept.")


def forget(
    id: Id,
    turns: Annotated[list[int], typer.Argument(metavar="TURN...", help="Indices of turns.")],
    model: Model = NANO,
    store: StorePath = None,
    device: Device = None,
    yes: Yes = False,
) -> None:
    """Forget single turns as if they had never been said; the model reads later ones again."""
    with _session(id, model, device, store) as session:
        _make_sure(f"Forget {len(set(turns)):,} turns of session {id} for good?", id, yes)
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading", total=None)

            def report(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            session.forget(turns, progress=report)
        left = session.n_turns
    typer.echo(f"Session {id}: {len(set(turns)):,} turns forgotten, {left:,} kept.")


def erase(id: Id, store: StorePath = None, yes: Yes = False) -> None:
    """Delete a session and leave nothing of it to be found in the store's files."""
    with open_store(store) as opened:
        turns = opened.info(id).n_turns
        _make_sure(f"Erase session {id} ({turns:,} turns) for good?", id, yes)
        opened.erase(id)
    typer.echo(f"Erased session {id}.")


def recall(
    id: Id,
    query: Annotated[str, typer.Argument(metavar="QUERY", help="What is asked.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Most turns of each source.")] = 8,
    text: Annotated[bool, typer.Option(help="Search the text, too.")] = True,
    model: Model = NANO,
    store: StorePath = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """The turns a question brings to mind: by memory, and by the words in it."""
    with _session(id, model, device, store, read_only=True) as session:
        found = session.recall(query, k, text=text)
    if as_json:
        typer.echo(json.dumps([_as_json(each) for each in found], ensure_ascii=False))
        return
    for each in found:
        snippet = " ".join(each.snippet.split())
        typer.echo(f"{each.source:<6}  {each.score:6.2f}  [{each.turn.index}] {snippet}")
    if not found:
        typer.echo("Nothing comes to mind.")


@contextmanager
def _session(
    id: str, model: str, device: str | None, path: Path | None, *, read_only: bool = False
) -> Iterator[Session]:
    """An existing session under its model."""
    with open_store(path, read_only=read_only) as opened:
        opened.info(id)  # before a model is loaded for nothing
        engine = load_engine(model, device)
        with engine.session(id, store=opened, create=False) as session:
            yield session


def _make_sure(question: str, id: str, yes: bool) -> None:
    """Go on only if somebody wants it."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError(f"session {id!r} was not changed: nobody is there to ask; give --yes")
    typer.confirm(question, abort=True)


def _as_json(found: Recollection) -> dict[str, object]:
    return {
        "source": found.source,
        "score": found.score,
        "index": found.turn.index,
        "role": found.turn.role,
        "content": found.turn.text,
        "snippet": found.snippet,
    }
