"""Adapters' documents beside the sessions, in the same database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from longmem.stored import Record


@runtime_checkable
class Records(Protocol):
    """Namespaced JSON documents for adapters, durable on return, in the same database.

    A record tied to a session is deleted together with it. One that came with a commit
    (`Commit.records`) is deleted with that commit as well; a fork does not take it along.
    """

    def put(self, namespace: str, key: str, value: Any, *, session: str | None = None) -> None:
        """Store or replace; with `session`, the record is deleted together with that session.

        Raises:
            SessionNotFoundError: there is no session of that id, so that the record would never go.
            InputError: `value` is not JSON-able.
        """

    def apply(
        self,
        puts: Sequence[Record],
        deletes: Sequence[tuple[str, str]] = (),
        *,
        session: str | None = None,
    ) -> None:
        """Delete and store several records in one transaction, all of it or nothing.

        Args:
            puts: stored or replaced, as `put` does; of two with one key the last counts.
            deletes: (namespace, key) of records to delete before that; one that is not there is
                fine.
            session: the puts are tied to it.

        Raises:
            SessionNotFoundError, InputError: as `put`; nothing was changed.
        """

    def get(self, namespace: str, key: str) -> Any | None:
        """The value, or None."""

    def list(
        self,
        namespace: str,
        prefix: str = "",
        *,
        after: str | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[tuple[str, Any]]:
        """(key, value) pairs whose key starts with `prefix`, ordered by key.

        Args:
            after: only what follows this key in that order, whether it exists or not.
            limit: at most so many.
            newest_first: from the last key to the first; the newest, where keys grow with time.
        """

    def delete(self, namespace: str, key: str) -> bool:
        """Delete; False if there was none."""
