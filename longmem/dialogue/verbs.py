"""What callers may do with sessions they own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from longmem.dialogue.claims import Claims, claims_of
from longmem.dialogue.ids import fork_name, public_id, public_names, session_id
from longmem.errors import InputError, SessionNotFoundError

if TYPE_CHECKING:
    from longmem.engine import Engine
    from longmem.session import Session
    from longmem.session_pool import SessionPool
    from longmem.store import SessionInfo, Store
    from longmem.types import Recollection, SessionStats, Turn


class Verbs:
    """Every verb takes an owner and a public id. The id of another owner's session is unknown here,
    in the same words as one that never was.

    Raises, all of them:
        SessionNotFoundError: the owner has no such session.
        SessionInUseError: the verb changes it, and an exchange is writing it.
    """

    engine: Engine
    store: Store | None
    _pool: SessionPool | None

    @property
    def pool(self) -> SessionPool:
        """Leases the sessions.

        Raises:
            InputError: the dialogue has no store.
        """
        if self._pool is None:
            raise InputError(
                "this dialogue has no store to keep sessions in; make it with one, for instance "
                "InMemoryStore(), or leave session out of the request"
            )
        return self._pool

    @property
    def claims(self) -> Claims:
        """Who is writing what."""
        return claims_of(self.pool)

    def resolve(self, owner: str | None, session: str) -> str:
        """The id in the store of the session that `owner` calls `session`."""
        stored_id = session_id(owner, session)
        if owner is None and stored_id != session and self.find(None, stored_id) is None:
            return session if self.find(None, session) else stored_id  # made without a dialogue
        return stored_id

    def find(self, owner: str | None, stored_id: str) -> SessionInfo | None:
        """The owner's session of this id in the store; None if there is none."""
        try:
            info = self.pool.store.info(stored_id)
        except SessionNotFoundError:
            return None
        return info if info.owner == owner else None

    def sessions(self, owner: str | None) -> list[SessionInfo]:
        """The owner's sessions, by their public ids, the most recently used first."""
        return [
            replace(info, id=public_id(owner, info.id))
            for info in self.pool.store.sessions(owner)
            if info.owner == owner
        ]

    def info(self, owner: str | None, session: str) -> SessionInfo:
        """One of them."""
        return replace(self._known(owner, session), id=session)

    def create(
        self, owner: str | None, session: str, *, metadata: Mapping[str, Any] | None = None
    ) -> SessionInfo:
        """Make an empty session, whose system prompt the first request may bring.

        Raises:
            InputError: the owner has one of this id.
        """
        stored_id = self.resolve(owner, session)
        with self.claims.take(stored_id, _in_use(session)):
            if self.find(owner, stored_id) is not None:
                raise InputError(f"session {session!r} is there already; choose another id")
            with self.pool.session(stored_id, owner=owner, metadata=metadata):
                pass
        return self.info(owner, session)

    def turns(
        self, owner: str | None, session: str, start: int = 0, stop: int | None = None
    ) -> list[Turn]:
        """Its committed turns ``start <= index < stop``."""
        with self._reading(owner, session) as held:
            return held.turns(start, stop)

    def stats(self, owner: str | None, session: str) -> SessionStats:
        """Its tokens, blocks and bytes."""
        with self._reading(owner, session) as held:
            return held.stats()

    def recall(
        self, owner: str | None, session: str, query: str, k: int = 8, *, text: bool = True
    ) -> list[Recollection]:
        """What of it comes to mind at `query`; see `Session.recall`."""
        with self._reading(owner, session) as held:
            return held.recall(query, k, text=text)

    def fork(
        self,
        owner: str | None,
        session: str,
        id: str | None = None,
        *,
        at: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """A new session that begins as this one did, up to turn `at`; see `Session.fork`.

        Returns:
            Its public id.

        Raises:
            InputError: no commit ends at `at`, or the owner has a session `id`.
        """
        source = self._known(owner, session).id
        name = id or fork_name(session)
        fork = session_id(owner, name)
        with public_names(owner, source, fork), self.claims.take(fork, _in_use(name)):
            if self.find(owner, fork) is not None:
                raise InputError(f"session {name!r} is there already; choose another id")
            self.pool.fork(source, fork, at=at, owner=owner, metadata=metadata)
        return name

    def rollback(self, owner: str | None, session: str, to: int) -> None:
        """Drop what follows turn `to`; see `Session.rollback`."""
        with self._writing(owner, session) as held:
            held.rollback(to)

    def forget(self, owner: str | None, session: str, turns: int | Sequence[int]) -> None:
        """Forget turns as if they had never been said; see `Session.forget`."""
        with self._writing(owner, session) as held:
            held.forget(turns)

    def delete(self, owner: str | None, session: str) -> None:
        """Delete it; see `Store.delete`."""
        with self._claimed(owner, session) as stored_id:
            self.pool.evict(stored_id)
            self.pool.store.delete(stored_id)

    def erase(self, owner: str | None, session: str) -> None:
        """Delete it and leave nothing to find; see `Store.erase`."""
        with self._claimed(owner, session) as stored_id:
            self.pool.evict(stored_id)
            self.pool.store.erase(stored_id)

    def _known(self, owner: str | None, session: str) -> SessionInfo:
        info = self.find(owner, self.resolve(owner, session))
        if info is None:
            raise SessionNotFoundError(f"there is no session {session!r}; begin it, or list yours")
        return info

    @contextmanager
    def _claimed(self, owner: str | None, session: str) -> Iterator[str]:
        stored_id = self._known(owner, session).id
        with public_names(owner, stored_id), self.claims.take(stored_id, _in_use(session)):
            yield self._known(owner, session).id

    @contextmanager
    def _writing(self, owner: str | None, session: str) -> Iterator[Session]:
        with (
            self._claimed(owner, session) as stored_id,
            self.pool.session(stored_id, owner=owner) as held,
        ):
            yield held

    @contextmanager
    def _reading(self, owner: str | None, session: str) -> Iterator[Session]:
        stored_id = self._known(owner, session).id
        with public_names(owner, stored_id), self.pool.session(stored_id, owner=owner) as held:
            yield held


def _in_use(session: str) -> str:
    return f"session {session!r} is in the middle of an exchange; try again when it is over"
