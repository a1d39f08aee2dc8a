"""The tools: what an agent may do with a store of sessions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from longmem.adapters.mcp.answers import (
    LONGEST,
    Found,
    SessionSummary,
    ShownSession,
    Totals,
    found_of,
    summary_of,
    turn_of,
)
from longmem.dialogue import public_id, session_id
from longmem.errors import InputError, SessionNotFoundError

if TYPE_CHECKING:
    from longmem.engine import Engine
    from longmem.store import SessionHandle, SessionInfo, Store

_MOST = 2**53  # what JSON numbers hold exactly
SessionId = Annotated[str, Field(description="Id of the session, as list_sessions gives it.")]


class Tools:
    """The tools. They run in threads; `_opening` lets one of them use a store at a time."""

    def __init__(
        self,
        store: Store | Callable[[bool], Store],
        engine: Engine | Callable[[], Engine] | None,
        owner: str | None,
    ) -> None:
        self._store, self._engine, self._owner = store, engine, owner
        self._opening = threading.Lock()

    def recall(
        self,
        session_id: SessionId,
        query: Annotated[str, Field(description="What to look for, in plain words.")],
        k: Annotated[int, Field(ge=1, le=50, description="Most turns of each source.")] = 8,
        text: Annotated[bool, Field(description="Also search the text of the turns.")] = True,
    ) -> list[Found]:
        """Find the turns of a session that have to do with a query.

        Source "memory": turns whose stored keys the model looks up when it reads the query, with
        their share of the look-up. Source "text": full-text hits. Nothing is stored. What only the
        compressive memory or the latest turns in the local window hold is not shown as "memory".
        """
        with self._stored(read_only=True) as store:
            with self._opened(store, session_id):
                pass  # it is there, and this owner's
            with self._loaded().session(self._id(session_id), store=store) as session:
                return [found_of(each) for each in session.recall(query, k, text=text)]

    def list_sessions(
        self,
        start: Annotated[int, Field(ge=0, le=_MOST, description="How many to skip.")] = 0,
        limit: Annotated[int, Field(ge=1, le=500, description="Most sessions to give.")] = 50,
    ) -> list[SessionSummary]:
        """The sessions, the most recently used first."""
        with self._stored(read_only=True) as store:
            found = store.sessions(self._owner)[start : start + limit]
        return [self._summary(info) for info in found]

    def show_session(
        self,
        session_id: SessionId,
        start: Annotated[
            int,
            Field(ge=-_MOST, le=_MOST, description="First turn to show; negative: from the end."),
        ] = 0,
        limit: Annotated[int, Field(ge=1, le=200, description="Most turns to show.")] = 20,
        whole: Annotated[bool, Field(description="Do not cut long turns.")] = False,
    ) -> ShownSession:
        """Read the turns of a session in order, a page at a time."""
        with self._stored(read_only=True) as store, self._opened(store, session_id) as handle:
            info = handle.info
            first = max(0, info.n_turns + start) if start < 0 else start
            turns = handle.turns(first, first + limit)
        behind = first + len(turns)
        return ShownSession(
            session=self._summary(info),
            turns=[turn_of(turn, None if whole else LONGEST) for turn in turns],
            next=behind if turns and behind < info.n_turns else None,
        )

    def stats(
        self,
        session_id: Annotated[
            str | None, Field(description="Id of one session; without it: all together.")
        ] = None,
    ) -> Totals:
        """Turns, tokens and bytes of one session, or of all of them together."""
        with self._stored(read_only=True) as store:
            if session_id is None:
                found = store.sessions(self._owner)
            else:
                with self._opened(store, session_id) as handle:
                    found = [handle.info]
        return Totals(
            sessions=len(found),
            turns=sum(info.n_turns for info in found),
            tokens=sum(info.n_tokens for info in found),
            bytes_disk=sum(info.bytes for info in found),
        )

    def forget_session(
        self,
        session_id: SessionId,
        confirm: Annotated[
            bool, Field(description="Set it only when the user agreed to this very deletion.")
        ] = False,
    ) -> str:
        """Erase a session for good, so that nothing of it is left to find. It cannot be undone."""
        with self._stored(read_only=True) as store, self._opened(store, session_id) as handle:
            turns = handle.info.n_turns
        if not confirm:
            raise InputError(
                f"session {session_id!r} with {turns} turns was not forgotten, which cannot be "
                "undone; ask the user, then call again with confirm=true"
            )
        with self._stored(read_only=False) as store:
            store.erase(self._id(session_id))
        return f"Session {session_id!r} with {turns} turns is forgotten."

    @contextmanager
    def _stored(self, *, read_only: bool) -> Iterator[Store]:
        with self._opening:
            opened = self._store(read_only) if callable(self._store) else nullcontext(self._store)
            with opened as store:
                yield store

    @contextmanager
    def _opened(self, store: Store, id: str) -> Iterator[SessionHandle]:
        """A session of this owner."""
        try:
            handle = store.open(self._id(id))
        except SessionNotFoundError:
            raise _missing(id) from None
        try:
            if self._owner is not None and handle.info.owner != self._owner:
                raise _missing(id)
            yield handle
        finally:
            handle.close()

    def _loaded(self) -> Engine:
        """The engine; called with `_opening` held."""
        if callable(self._engine):
            self._engine = self._engine()
        assert self._engine is not None  # recall is not offered without
        return self._engine

    def _id(self, id: str) -> str:
        return id if self._owner is None else session_id(self._owner, id)

    def _public(self, id: str) -> str:
        return id if self._owner is None else public_id(self._owner, id)

    def _summary(self, info: SessionInfo) -> SessionSummary:
        parent = self._public(info.parent) if info.parent else None
        return summary_of(info, self._public(info.id), parent)


def _missing(id: str) -> SessionNotFoundError:
    return SessionNotFoundError(
        f"there is no session {id!r} in this store; list_sessions gives those there are"
    )
