"""How sessions are found in a store and shown: as a table, a line or JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from longmem.cli.common import console, default_store, open_store, readable_bytes

if TYPE_CHECKING:
    from longmem.store import SessionInfo


def found_in(store: Path | None, owner: str | None) -> list[SessionInfo]:
    """Sessions, the most recently used first. On a fresh machine, where nobody named a store, there
    are none yet; that is no error."""
    if store is None and not default_store().exists():
        return []
    with open_store(store, read_only=True) as opened:
        return opened.sessions(owner)


def print_table(found: Sequence[SessionInfo]) -> None:
    """One row per session; when they expire, if any of them does."""
    now, expiring = time.time(), any(info.ttl is not None for info in found)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("session", overflow="fold")
    for title in ("turns", "tokens", "on disk"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("last used", no_wrap=True)
    if expiring:
        table.add_column("expires", no_wrap=True)
    table.add_column("begun with", overflow="fold")
    for info in found:
        table.add_row(
            Text(info.id),
            f"{info.n_turns:,}",
            f"{info.n_tokens:,}",
            readable_bytes(info.charged),
            when(info.updated_at),
            *([_expiry(info, now)] if expiring else []),
            Text(str(info.metadata.get("model", ""))),
        )
    console().print(table)


def headline(info: SessionInfo) -> str:
    """A session in one line."""
    size = readable_bytes(info.charged)
    line = (
        f"session {info.id}: {info.n_turns:,} turns, {info.n_tokens:,} tokens, {size} on disk, "
        f"last used {when(info.updated_at)}"
    )
    expiry = _expiry(info, time.time())
    if expiry in ("", "expired"):
        return ", ".join(filter(None, (line, expiry)))
    return f"{line}, expires {expiry}"


def session_json(info: SessionInfo) -> dict[str, Any]:
    """A session as `--json` prints it."""
    return {
        "id": info.id,
        "owner": info.owner,
        "turns": info.n_turns,
        "tokens": info.n_tokens,
        "bytes_disk": info.bytes,
        "bytes_charged": info.charged,
        "max_bytes": info.max_bytes,
        "created_at": info.created_at,
        "updated_at": info.updated_at,
        "expires_at": info.expires_at,
        "metadata": dict(info.metadata),
    }


def when(seconds: float) -> str:
    """Unix seconds as local date and time, "later" beyond the calendar."""
    try:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):
        return "later"


def _expiry(info: SessionInfo, now: float) -> str:
    if info.expires_at is None:
        return ""
    return "expired" if info.expired(now) else when(info.expires_at)
