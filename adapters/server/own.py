"""/v1/longmem/sessions: what only longmem has. Fork, rollback, forget, erase, recall, figures."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from longmem.adapters.server.context import Context
from longmem.adapters.server.conversations_page import After, Limit, Order, page
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
from longmem.adapters.server.routing import new_router

Session = dict[str, Any]
FirstTurn = Annotated[int, Query(ge=0, le=2**53, description="index of the first turn shown")]


class SessionRoutes:
    """What the routes answer.

    Args:
        context: the application's.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._dialogue = context, context.dialogue

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

    def delete_session(self, session_id: str, request: Request) -> dict[str, Any]:
        """Delete a session, with its responses."""
        self._dialogue.delete(self._context.owner(request), session_id)
        return _gone(session_id)

    def erase_session(self, session_id: str, request: Request) -> dict[str, Any]:
        """Delete a session and leave nothing of it on disk; takes longer than deleting it."""
        self._dialogue.erase(self._context.owner(request), session_id)
        return _gone(session_id)

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

    def fork_session(
        self, session_id: str, request: Request, body: ForkBody | None = None
    ) -> Session:
        """A new session that begins as this one did, up to the turn `at`."""
        given = body or ForkBody()
        owner = self._context.owner(request)
        fork = self._dialogue.fork(
            owner, session_id, given.id, at=given.at, metadata=given.metadata
        )
        return self._shown(request, fork)

    def rollback_session(self, session_id: str, body: RollbackBody, request: Request) -> Session:
        """Drop what follows the turn `to`."""
        self._dialogue.rollback(self._context.owner(request), session_id, body.to)
        return self._shown(request, session_id)

    def forget_turns(self, session_id: str, body: ForgetBody, request: Request) -> Session:
        """Forget turns as if they had never been said; what follows them is read again."""
        self._dialogue.forget(self._context.owner(request), session_id, body.turns)
        return self._shown(request, session_id)

    def session_stats(self, session_id: str, request: Request) -> dict[str, Any]:
        """Tokens, blocks and bytes, and where look-ups found their blocks."""
        return stats_object(self._dialogue.stats(self._context.owner(request), session_id))

    def recall(self, session_id: str, body: RecallBody, request: Request) -> dict[str, Any]:
        """Turns that a query brings back: from memory, then by full-text search."""
        owner = self._context.owner(request)
        found = self._dialogue.recall(owner, session_id, body.query, body.k, text=body.text)
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
