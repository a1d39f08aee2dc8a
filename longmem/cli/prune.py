"""`longmem sessions prune`: delete the sessions that were not used for longest."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longmem.cli.common import AsJson, StorePath, open_store, readable_bytes
from longmem.cli.listing import found_in, print_table, session_json
from longmem.cli.quantities import parse_age, parse_bytes
from longmem.errors import InputError

if TYPE_CHECKING:
    from longmem.store import SessionInfo


def prune(
    store: StorePath = None,
    older_than: Annotated[
        float | None,
        typer.Option(parser=parse_age, metavar="AGE", help="All not used for so long: 30d, 12h."),
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only among this owner's sessions.")] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            parser=parse_bytes,
            metavar="SIZE",
            help="The least recently used, until the others hold at most so much: 10GB, 500MiB.",
        ),
    ] = None,
    expired: Annotated[bool, typer.Option("--expired", help="All whose ttl is over.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete sessions, the least recently used first, until every condition given holds."""
    if older_than is None and max_bytes is None and not expired:
        raise typer.BadParameter("say what may go: --older-than, --max-bytes or --expired.")
    found = found_in(store, owner)
    going = chosen(found, time.time(), older_than, max_bytes, expired)
    if not as_json:
        _announce(found, going)
    if going and not dry_run:
        _ask(len(going), yes)
        going = _delete(store, owner, going)
    _report(found, going, dry_run, as_json)


def chosen(
    found: Sequence[SessionInfo],
    now: float,
    older_than: float | None = None,
    max_bytes: int | None = None,
    expired: bool = False,
) -> list[SessionInfo]:
    """What has to go, the least recently used first.

    Args:
        found: sessions, the most recently used first.
        now: Unix seconds.
        older_than: seconds; those last used longer ago go.
        max_bytes: of the others, so many go that the rest is charged with at most so much.
        expired: whether those whose ttl is over go.
    """
    held, going = sum(info.charged for info in found), set[str]()
    for info in reversed(found):
        old = older_than is not None and info.updated_at < now - older_than
        if old or (expired and info.expired(now)):
            going.add(info.id)
            held -= info.charged
    for info in reversed(found):
        if max_bytes is not None and held > max_bytes and info.id not in going:
            going.add(info.id)
            held -= info.charged
    return [info for info in reversed(found) if info.id in going]


def _announce(found: Sequence[SessionInfo], going: Sequence[SessionInfo]) -> None:
    if not going:
        typer.echo(f"Nothing has to go: {len(found)} sessions hold {_size(found)}.")
        return
    print_table(going)
    typer.echo(f"To be deleted: {len(going)} of {len(found)} sessions, {_size(going)} on disk.")


def _ask(count: int, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("nothing was deleted: nobody is there to ask; give --yes")
    typer.confirm(f"Delete {count} sessions with all their files?", abort=True, err=True)


def _delete(
    path: Path | None, owner: str | None, going: Sequence[SessionInfo]
) -> list[SessionInfo]:
    """Delete what was announced; a session that was used since then stays. Returns what went."""
    with open_store(path) as store:
        unused = {info.id: info for info in store.sessions(owner)}
        gone = [info for info in going if unused.get(info.id) == info]
        for info in gone:
            store.delete(info.id)
    if len(gone) < len(going):
        typer.echo(f"{len(going) - len(gone)} were used meanwhile and stay.", err=True)
    return gone


def _report(
    found: Sequence[SessionInfo], gone: Sequence[SessionInfo], dry_run: bool, as_json: bool
) -> None:
    if as_json:
        figures = {
            "dry_run": dry_run,
            "deleted": [session_json(info) for info in gone],
            "bytes_freed": sum(info.charged for info in gone),
            "bytes_left": sum(info.charged for info in found) - sum(info.charged for info in gone),
        }
        typer.echo(json.dumps(figures, ensure_ascii=False))
    elif dry_run:
        typer.echo("Nothing was deleted (--dry-run).")
    elif gone:
        typer.echo(f"Deleted {len(gone)} sessions, {_size(gone)} freed.")


def _size(infos: Sequence[SessionInfo]) -> str:
    return readable_bytes(sum(info.charged for info in infos))
