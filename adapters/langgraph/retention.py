"""Which checkpoints have to stay for others.

A channel whose updates alone are stored (LangGraph's `DeltaChannel`) is rebuilt from the writes at
a checkpoint's ancestors, back to the nearest that holds a whole value. Without these ancestors it
would be empty, silently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from longmem.adapters.langgraph.checkpoints import Checkpoints
from longmem.adapters.langgraph.rows import Address, Head


def behind(checkpoints: Checkpoints, head: Head) -> Iterator[Head]:
    """The ancestors whose writes are part of a checkpoint's values, the nearest first."""
    left = {name for name in head.deltas if _misses(checkpoints, head, name)}
    while left and head.parent is not None:
        parent = checkpoints.head(head.at._replace(id=head.parent))
        if parent is None:
            return
        head = parent
        yield head
        left = {name for name in left if _misses(checkpoints, head, name)}


def needed(checkpoints: Checkpoints, stay: Iterable[Head]) -> set[Address]:
    """The ancestors without which these could not be read."""
    return {head.at for each in stay for head in behind(checkpoints, each)}


def latest_of_each(heads: Iterable[Head]) -> list[Head]:
    """The checkpoint of the greatest id in each namespace."""
    last: dict[str, Head] = {}
    for head in sorted(heads, key=lambda head: head.at.id):
        last[head.at.namespace] = head
    return list(last.values())


def _misses(checkpoints: Checkpoints, head: Head, channel: str) -> bool:
    return channel not in head.versions or checkpoints.value_row(head, channel) is None
