"""Adapters' records of an `InMemoryStore`."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, NamedTuple

from longmem.store import Record
from longmem.stores.rows import to_json


class _Kept(NamedTuple):
    text: str
    session: str | None
    head: int | None


class InMemoryRecords:
    """`longmem.records.Records` in RAM; values are kept as JSON text, so that nothing is shared.

    Args:
        guard: the store's lock.
        find: raises SessionNotFoundError for an id the store does not hold.
    """

    def __init__(
        self, guard: AbstractContextManager[object], find: Callable[[str], object]
    ) -> None:
        self._guard = guard
        self._find = find
        self._records: dict[tuple[str, str], _Kept] = {}

    def put(self, namespace: str, key: str, value: Any, *, session: str | None = None) -> None:
        """Store or replace; with `session`, the record is deleted together with that session."""
        self.apply([Record(namespace, key, value)], session=session)

    def apply(
        self,
        puts: Sequence[Record],
        deletes: Sequence[tuple[str, str]] = (),
        *,
        session: str | None = None,
    ) -> None:
        """Delete and store several records, all of it or nothing."""
        kept = _kept(puts, session, None)
        with self._guard:
            if session is not None and puts:
                self._find(session)
            for space, key in deletes:
                self._records.pop((space, key), None)
            self._records |= kept

    def get(self, namespace: str, key: str) -> Any | None:
        """The value, or None."""
        found = self._records.get((namespace, key))
        return None if found is None else json.loads(found.text)

    def list(
        self,
        namespace: str,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> builtins.list[tuple[str, Any]]:
        """(key, value) pairs whose key starts with `prefix`, ordered by key."""
        with self._guard:
            texts = {
                key: kept.text for (space, key), kept in self._records.items() if space == namespace
            }
        keys = sorted((key for key in texts if key.startswith(prefix)), reverse=newest_first)
        if after is not None:
            keys = [key for key in keys if (key < after if newest_first else key > after)]
        first = islice(keys, None if limit is None else max(limit, 0))
        return [(key, json.loads(texts[key])) for key in first]

    def delete(self, namespace: str, key: str) -> bool:
        """Delete; False if there was none."""
        with self._guard:
            return self._records.pop((namespace, key), None) is not None

    def committed(self, records: Sequence[Record], session: str, head: int) -> None:
        """Store the records of a commit."""
        self._records |= _kept(records, session, head)

    def drop_session(self, session: str) -> None:
        """Delete what was tied to a session."""
        self._records = {
            name: kept for name, kept in self._records.items() if kept.session != session
        }

    def move(self, session: str, heads: Mapping[int, int | None]) -> None:
        """Tie records of a session to the new numbers of their commits; those without one go."""
        after = {}
        for name, kept in self._records.items():
            head = kept.head
            if kept.session == session and head is not None:
                kept = kept._replace(head=heads.get(head, head))
                if kept.head is None:
                    continue
            after[name] = kept
        self._records = after

    def rewind(self, session: str, head: int) -> None:
        """Delete what was tied to commits of a session behind `head`."""
        self._records = {
            name: kept
            for name, kept in self._records.items()
            if kept.session != session or (kept.head or 0) <= head
        }


def _kept(
    records: Sequence[Record], session: str | None, head: int | None
) -> dict[tuple[str, str], _Kept]:
    return {(r.namespace, r.key): _Kept(to_json(r.value), session, head) for r in records}
