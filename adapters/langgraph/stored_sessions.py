"""Fork, roll back and delete sessions in a store, where there is no model to open them with."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from longmem.dialogue import public_id, session_id
from longmem.errors import InputError
from longmem.forking import fork_stored, window_at
from longmem.store import SessionInfo, Store


class Sessions(Protocol):
    """What is done to the sessions of an owner, by public ids. `longmem.dialogue.Dialogue` does it
    for sessions in use; `StoredSessions` for those that are not."""

    def sessions(self, owner: str | None) -> list[SessionInfo]:
        """All of them."""

    def fork(
        self,
        owner: str | None,
        session: str,
        id: str | None = None,
        *,
        at: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """A new session `id` that begins with the turns up to `at`."""

    def rollback(self, owner: str | None, session: str, to: int) -> None:
        """Drop what follows turn `to`."""

    def delete(self, owner: str | None, session: str) -> None:
        """Delete it."""


@dataclass(frozen=True)
class StoredSessions:
    """`Sessions` of a store alone.

    Args:
        store: it; a session that is open in this process raises SessionInUseError.
    """

    store: Store

    def sessions(self, owner: str | None) -> list[SessionInfo]:
        """The owner's sessions, the most recently used first."""
        return [
            replace(info, id=public_id(owner, info.id))
            for info in self.store.sessions(owner)
            if info.owner == owner
        ]

    def fork(
        self,
        owner: str | None,
        session: str,
        id: str | None = None,
        *,
        at: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """A new session that begins with the turns up to `at`; default all of them.

        Raises:
            SessionNotFoundError, SessionInUseError, StoreError: as `Store.fork`.
            InputError: no id for it was given, or no exchange ends at `at`.
        """
        if id is None:
            raise InputError(f"give the fork of session {session!r} an id")
        name = session_id(owner, id)
        with closing(self.store.open(session_id(owner, session))) as handle:
            fork = fork_stored(
                self.store, handle, name, at=at, owner=owner, metadata=metadata, checked=True
            )
            fork.close()
        return id

    def rollback(self, owner: str | None, session: str, to: int) -> None:
        """Drop the commits that end behind turn `to`.

        Raises:
            StoreError: what the session would have to read there was dropped from its files.
        """
        with closing(self.store.open(session_id(owner, session))) as handle:
            point = handle.point(to + 1)
            handle.rollback(point.head, window=window_at(self.store, handle, point))

    def delete(self, owner: str | None, session: str) -> None:
        """Delete it; see `Store.delete`."""
        self.store.delete(session_id(owner, session))
