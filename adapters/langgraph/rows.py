"""How checkpoints lie in a store's records.

    langgraph.checkpoints  owner/thread/namespace/checkpoint              a checkpoint without values
    langgraph.values       owner/thread/namespace/channel/version         one channel's value
    langgraph.writes       owner/thread/namespace/checkpoint/task/index   what a task wrote
    langgraph.runs         owner/run/thread/namespace/checkpoint          which run made it

Parts of a key are percent-encoded, so that "/" only ever separates them. Values are what the saver's
serializer makes of them, its bytes as base64: the records are JSON text throughout.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from langgraph.checkpoint.serde.base import SerializerProtocol

from longmem.adapters.langchain.place import reference

CHECKPOINTS, VALUES = "langgraph.checkpoints", "langgraph.values"
WRITES, RUNS = "langgraph.writes", "langgraph.runs"

Reply = tuple[str, str, int]
"""(memory, branch, turn): a reply that stands in a session; see `longmem.adapters.langchain.place`."""


class Address(NamedTuple):
    """One checkpoint."""

    thread: str
    namespace: str
    id: str


@dataclass(frozen=True)
class Head:
    """A checkpoint without the values of its channels.

    Args:
        at: which one.
        parent: id of the one it was made from.
        run: id of the run that made it.
        versions: of its channels; they say which values are its own.
        deltas: channels of which only updates are stored, here or at its ancestors.
        checkpoint, metadata: packed.
    """

    at: Address
    parent: str | None
    run: str | None
    versions: Mapping[str, Any]
    deltas: Sequence[str]
    checkpoint: Any
    metadata: Any

    @property
    def row(self) -> dict[str, Any]:
        """As it is stored."""
        names = ("parent", "run", "versions", "deltas", "checkpoint", "metadata")
        return {name: getattr(self, name) for name in names}


def head_of(key: str, row: Mapping[str, Any]) -> Head:
    """The checkpoint that a record holds."""
    return Head(Address(*split(key)[1:]), **row)


def key(*parts: str) -> str:
    """A record's key."""
    return "/".join(quote(part, safe="") for part in parts)


def prefix(*parts: str) -> str:
    """What the keys below these parts begin with."""
    return f"{key(*parts)}/"


def split(text: str) -> list[str]:
    """The parts of a key."""
    return [unquote(part) for part in text.split("/")]


def version_text(version: Any) -> str:
    """A channel's version as part of a key: 1 and "1" are two."""
    return json.dumps(version)


def pack(serde: SerializerProtocol, value: Any) -> list[str]:
    """A value as ``[type, base64]``."""
    kind, data = serde.dumps_typed(value)
    return [kind, base64.b64encode(data).decode("ascii")]


def unpack(serde: SerializerProtocol, packed: list[str]) -> Any:
    """`pack` the other way round."""
    kind, data = packed
    return serde.loads_typed((kind, base64.b64decode(data)))


def replies_in(value: Any) -> list[Reply]:
    """The last reply of each branch among a value's messages, in the order of the last ones."""
    last: dict[tuple[str, str], int] = {}
    for memory, branch, turn in filter(None, map(reference, _members(value))):
        turn = max(turn, last.pop((memory, branch), turn))
        last[memory, branch] = turn
    return [(memory, branch, turn) for (memory, branch), turn in last.items()]


def _members(value: Any) -> Iterator[Any]:
    """Whatever a value holds, however deep in lists and dicts; those it holds once more as well."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, Mapping):
            todo.extend(reversed(list(each.values())))
        elif isinstance(each, list | tuple):
            todo.extend(reversed(each))
        else:
            yield each
