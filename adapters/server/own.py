"""/v1/longmem/sessions: what only longmem has. Fork, rollback, forget, erase, recall, figures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Annotated, Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Query, Request

from longmem.adapters.server.context import Context
from longmem.adapters.server.conversations_page import After, Limit, Order, page
from longmem.adapters.server.conversations_state import Conversation
from longmem.adapters.server.own_models import (
    ForgetBody,
    ForkBody,
    RecallBody,
    RollbackBody,
    recollection_object,
    session_object,
    stats_object,
    turn_object,
)
from longmem.adapters.server.responses_flights import flights_of
from longmem.adapters.server.routing import new_router
from longmem.errors import SessionNotFoundError

T = TypeVar("T")
_AT_ONCE = 4
"""Verbs of one owner that run at a time, where they may take long."""

Session = dict[str, Any]
FirstTurn = Annotated[int, Query(ge=0, le=2**53, description="index of the first turn shown")]


class SessionRoutes:
    """What the routes answer.

    Args:
        context: the application's.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._dialogue = context, context.dialogue
        self._limits: dict[str | None, CapacityLimiter] = defaultdict(
            lambda: CapacityLimiter(_AT_ONCE)
        )

    async def _aside(self, request: Request, verb: Callable[..., T], *given: Any) -> T:
        """Call a verb that may take long: an owner's wait for one another, and for nobody else's."""
        owner = self._context.owner(request)
        return await run_sync(partial(verb, owner, *given), limiter=self._limits[owner])

    def _shown(self, request: Request, id: str) -> Session:
        owner = self._context.owner(request)
        return session_object(owner, self._dialogue.info(owner, id))

    def list_sessions(
        self, request: Request, after: After = None, limit: Limit = 20, order: Order = "desc"
    ) -> dict[str, Any]:
        """Your sessions, by when they were begun."""
        owner = self._context.owner(request)
        found = sorted(
            self._dialogue.sessions(owner),
            key=lambda info: (info.created_at, info.id),
            reverse=order == "desc",
        )
        return page((session_object(owner, info) for info in found), after=after, limit=limit)

    def retrieve_session(self, session_id: str, request: Request) -> Session:
        """One session."""
        return self._shown(request, session_id)

    async def delete_session(self, session_id: str, request: Request) -> dict[str, Any]:
        """Delete a session, with its responses; a conversation with every session it was in."""
        return await self._aside(request, self._remove, session_id, self._dialogue.delete)

    async def erase_session(self, session_id: str, request: Request) -> dict[str, Any]:
        """Delete a session, or a conversation with every session it was in, and leave nothing of it
        on disk; takes longer than deleting it."""
        return await self._aside(request, self._remove, session_id, self._dialogue.erase)

    def _remove(
        self, owner: str | None, id: str, verb: Callable[[str | None, str], None]
    ) -> dict[str, Any]:
        with flights_of(self._dialogue).conversation(owner, id):
            *moved, began = Conversation(self._dialogue, owner, id).traces
            for session in moved:
                verb(owner, session)
            with suppress(SessionNotFoundError) if moved else nullcontext():
                verb(owner, began)
        return _gone(id)

    def list_turns(
        self, session_id: str, request: Request, start: FirstTurn = 0, limit: Limit = 20
    ) -> dict[str, Any]:
        """Turns, oldest first, from `start` on."""
        owner = self._context.owner(request)
        n_turns = self._dialogue.info(owner, session_id).n_turns
        turns = self._dialogue.turns(
            owner, session_id, min(start, n_turns), min(start + limit, n_turns)
        )
        return {
            "object": "list",
            "data": [turn_object(turn) for turn in turns],
            "has_more": start + limit < n_turns,
        }

    async def fork_session(
        self, session_id: str, request: Request, body: ForkBody | None = None
    ) -> Session:
        """A new session that begins as this one did, up to the turn `at`."""
        given = body or ForkBody()
        fork = partial(self._dialogue.fork, at=given.at, metadata=given.metadata)
        made = await self._aside(request, fork, session_id, given.id)
        return self._shown(request, made)

    async def rollback_session(
        self, session_id: str, body: RollbackBody, request: Request
    ) -> Session:
        """Drop what follows the turn `to`."""
        await self._aside(request, self._dialogue.rollback, session_id, body.to)
        return self._shown(request, session_id)

    async def forget_turns(self, session_id: str, body: ForgetBody, request: Request) -> Session:
        """Forget turns as if they had never been said; what follows them is read again."""
        await self._aside(request, self._dialogue.forget, session_id, body.turns)
        return self._shown(request, session_id)

    def session_stats(self, session_id: str, request: Request) -> dict[str, Any]:
        """Tokens, blocks and bytes, and where look-ups found their blocks."""
        return stats_object(self._dialogue.stats(self._context.owner(request), session_id))

    async def recall(self, session_id: str, body: RecallBody, request: Request) -> dict[str, Any]:
        """Turns that a query brings back: from memory, then by full-text search."""
        recall = partial(self._dialogue.recall, text=body.text)
        found = await self._aside(request, recall, session_id, body.query, body.k)
        return {"object": "list", "data": [recollection_object(each) for each in found]}


def router(context: Context) -> APIRouter:
    """The routes."""
    routes = new_router(tags=["sessions"], prefix="/v1/longmem/sessions")
    own = SessionRoutes(context)
    routes.get("")(own.list_sessions)
    routes.get("/{session_id}")(own.retrieve_session)
    routes.delete("/{session_id}")(own.delete_session)
    routes.post("/{session_id}/erase")(own.erase_session)
    routes.get("/{session_id}/turns")(own.list_turns)
    routes.post("/{session_id}/fork")(own.fork_session)
    routes.post("/{session_id}/rollback")(own.rollback_session)
    routes.post("/{session_id}/forget")(own.forget_turns)
    routes.get("/{session_id}/stats")(own.session_stats)
    routes.post("/{session_id}/recall")(own.recall)
    return routes


def _gone(id: str) -> dict[str, Any]:
    return {"id": id, "object": "session.deleted", "deleted": True}
