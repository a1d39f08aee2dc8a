"""`longmem sessions`: look at what a store holds, make room in it, and bring transcripts in."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from longmem.cli import timeline, transcript
from longmem.cli.common import (
    NANO,
    AsJson,
    Device,
    Model,
    StorePath,
    load_engine,
    open_store,
)
from longmem.cli.listing import found_in, headline, print_table, session_json
from longmem.cli.prune import prune
from longmem.errors import InputError, SessionInUseError

if TYPE_CHECKING:
    from longmem import Engine, Store
    from longmem.store import SessionInfo, TurnRecord

app = typer.Typer(help="List, read, check, delete and import sessions.", no_args_is_help=True)
app.command()(prune)
app.command()(timeline.fork)
app.command()(timeline.rollback)
app.command()(timeline.forget)
app.command()(timeline.erase)
app.command()(timeline.recall)

Id = Annotated[str, typer.Argument(metavar="ID", help="The session.")]


@app.command("list")
def list_sessions(
    store: StorePath = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's sessions.")] = None,
    as_json: AsJson = False,
) -> None:
    """All sessions of a store, the most recently used first."""
    found = found_in(store, owner)
    if as_json:
        typer.echo(json.dumps([session_json(info) for info in found], ensure_ascii=False))
        return
    if not found:
        typer.echo("No sessions.")
        return
    print_table(found)


@app.command()
def show(
    id: Id,
    store: StorePath = None,
    last: Annotated[int, typer.Option(min=0, help="Only the last so many turns; 0: all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The turns of a session. With --json: one object per turn and line."""
    with open_store(store, read_only=True) as opened:
        handle = opened.open(id)
        info = handle.info
        turns = handle.turns(max(0, info.n_turns - last) if last else 0)
    if not as_json:
        typer.echo(headline(info))
    for turn in turns:
        typer.echo(_turn_json(turn) if as_json else f"\n[{turn.index}] {turn.role}\n{turn.text}")


@app.command()
def delete(
    id: Id,
    store: StorePath = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a session with all its files."""
    info = _find(id, store)
    if not yes:
        if not sys.stdin.isatty():
            raise InputError(f"session {id!r} was not deleted: nobody is there to ask; give --yes")
        typer.confirm(f"Delete {headline(info)}?", abort=True)
    with open_store(store) as opened:
        opened.delete(id)
    typer.echo(f"Deleted session {id}.")


@app.command()
def verify(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only this session.")] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Read everything and compare it with its checksums. Exit code 1 if something is wrong."""
    with open_store(store, read_only=True) as opened:
        problems = opened.verify(id)
    if as_json:
        typer.echo(json.dumps([asdict(problem) for problem in problems], ensure_ascii=False))
    else:
        for problem in problems:
            where = ", ".join(part for part in (problem.session, problem.file) if part)
            typer.echo(f"{where}: {problem.message}" if where else problem.message)
        typer.echo(f"Found wrong: {len(problems)}." if problems else "Sound.")
    if problems:
        raise typer.Exit(1)


@app.command("import")
def import_transcript(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            exists=True,
            dir_okay=False,
            readable=True,
            help='One {"role": ..., "content": ...} per line.',
        ),
    ],
    session: Annotated[str, typer.Option("--session", "-s", help="Id of the new session.")],
    model: Model = NANO,
    store: StorePath = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Make a transcript a session: the model reads it, all of it or nothing."""
    lines = transcript.parse(file.read_bytes(), file.name)
    engine = load_engine(model, device)
    transcript.check(lines, file.name, engine)
    with open_store(store) as opened:
        if any(info.id == session for info in opened.sessions()):
            raise SessionInUseError(
                f"session {session!r} exists already; choose another --session, or delete it first"
            )
        told = _read(engine, opened, session, lines, model)
    if as_json:
        figures = {"session": session, "turns": told.n_turns, "tokens": told.n_tokens}
        typer.echo(json.dumps(figures))
        return
    typer.echo(f"Session {session}: {told.n_turns:,} turns, {told.n_tokens:,} tokens read.")


def _read(
    engine: Engine, store: Store, id: str, lines: Sequence[transcript.Line], model: str
) -> SessionInfo:
    """The new session reads all lines; where that fails, it goes again."""
    from longmem.opening import check_id, session_info
    from longmem.rebuild import read_transcript
    from longmem.store import SessionInfo

    check_id(id)
    now = time.time()
    empty = SessionInfo(id, None, {"model": model}, {}, (), "", now, now)
    handle = store.create(session_info(engine, empty))
    try:
        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("reading", total=None)

            def report(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            read_transcript(engine, store, handle, [line[1:] for line in lines], report)
        return handle.info
    except BaseException:
        handle.close()
        store.delete(id)
        raise
    finally:
        handle.close()


def _find(id: str, path: Path | None) -> SessionInfo:
    with open_store(path, read_only=True) as store:
        return store.open(id).info


def _turn_json(turn: TurnRecord) -> str:
    fields = {
        "index": turn.index,
        "role": turn.role,
        "content": turn.text,
        "tokens": len(turn.ids),
        "created_at": turn.created_at,
    }
    return json.dumps({**fields, **turn.extra}, ensure_ascii=False)
