"""How much a session, an owner's sessions and a whole store may hold, checked before writing.

What counts (`SessionInfo.charged`): the bytes of the session's files as they were written, and for
each row of it in the database (the session's own, one per commit, one per turn) the lengths of its
text and blobs (text, ids, spans, extra, metadata ...) and `ROW_BYTES`. An `InMemoryStore` counts
the bytes of its tensors instead of files. A file that several sessions share counts in full for
each of them. A hidden session that is being rebuilt counts beside the one it stands in for, but not
against that one's own limit, and not for the commits that it took over from it. Not counted:
checksums, indices, the full-text index, the write-ahead log, adapters' records, the rounding of
files to disk blocks, and, for the moment in which files are merged, those that are replaced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from longmem.errors import ConfigError, StoreFullError
from longmem.store import SessionInfo
from longmem.stores.header import DTYPES

ROW_BYTES = 96
"""What a row counts beside its text and blobs: numbers, row header, index entries."""

TurnValues = Mapping[str, str | bytes | float]
"""A turn's columns, as `longmem.stores.rows.turn_values` makes them."""

_OF_SESSION = "MemoryConfig.max_bytes"
_BEGIN_ANOTHER = "begin another session, or delete this one"
_PRUNE = "delete sessions (`longmem sessions prune` deletes those that were not used for longest)"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Usage(NamedTuple):
    """Bytes held: by a session, by all sessions of its owner, by the store."""

    session: int
    owner: int
    store: int

    def without(self, shared: int) -> Usage:
        """Of a stand-in, which holds `shared` bytes together with the session it stands in for: for
        owner and store they count once."""
        return Usage(self.session, self.owner - shared, self.store - shared)


@dataclass(frozen=True)
class Limits:
    """What a store allows, in bytes; None allows any amount.

    Args:
        store: for all sessions together.
        owner: for the sessions of each owner together; sessions without an owner have no such limit.

    Raises:
        ConfigError: a limit is not positive.
    """

    store: int | None = None
    owner: int | None = None

    def __post_init__(self) -> None:
        check_limit("max_bytes", self.store)
        check_limit("max_owner_bytes", self.owner)

    def bind(self, info: SessionInfo) -> bool:
        """Whether any limit holds for this session."""
        return (self.store, self.owner, info.max_bytes) != (None, None, None)

    def check(self, info: SessionInfo, used: Usage, needed: int) -> None:
        """Refuse `needed` bytes that do not fit beside what is `used`.

        Raises:
            StoreFullError: names the limit, what is used and what is needed.
        """
        scopes = (
            (_OF_SESSION, info.max_bytes, used.session),
            ("the store's max_owner_bytes", None if info.owner is None else self.owner, used.owner),
            ("the store's max_bytes", self.store, used.store),
        )
        for name, limit, held in scopes:
            if limit is not None and held + needed > limit:
                raise _full(info, name, limit, held, needed)


def check_limit(name: str, value: float | None) -> None:
    """Refuse a limit or a time that is not positive.

    Raises:
        ConfigError: names it.
    """
    if value is not None and not value > 0:
        raise ConfigError(f"{name} is {value!r}; give a number above 0, or None for no limit")


def check_limits(max_bytes: int | None, ttl: float | None) -> None:
    """What `longmem.store.SessionHandle.limit` refuses.

    Raises:
        ConfigError: a value is not positive.
    """
    check_limit("max_bytes", max_bytes)
    check_limit("ttl", ttl)


def turn_bytes(turns: Sequence[TurnValues]) -> int:
    """What the rows of turns count."""
    values = [value for turn in turns for value in turn.values()]
    return sum(_length(value) for value in values) + ROW_BYTES * len(turns)


def session_bytes(info: SessionInfo) -> int:
    """What the row of a session counts."""
    texts = [info.id, info.owner or "", info.dtype]
    parts = [info.metadata, info.fingerprint, info.layout]
    return ROW_BYTES + sum(map(_length, [*texts, *map(_json, parts)]))


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> int:
    """Size of the safetensors file of these tensors, before it is written.

    Exact but for a few bytes: the header holds offsets, whose digits depend on their order.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name, tensor in tensors.items():
        stop = at + tensor_bytes([tensor])
        shape = list(tensor.shape)
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": shape, "data_offsets": [at, stop]}
        at = stop
    return 8 + -(-_length(_json(header)) // 8) * 8 + at


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _length(value: str | bytes | float) -> int:
    if isinstance(value, str):
        return len(value.encode())
    return len(value) if isinstance(value, bytes) else 0


def _full(info: SessionInfo, limit: str, most: int, used: int, needed: int) -> StoreFullError:
    owner = "" if info.owner is None else f" of owner {info.owner!r}"
    advice = _BEGIN_ANOTHER if limit == _OF_SESSION else _PRUNE
    return StoreFullError(
        f"session {info.id!r}{owner}: {needed:,} bytes more do not fit; {used:,} of {limit} ="
        f" {most:,} are used. Nothing was written. Raise the limit, or {advice}."
    )
