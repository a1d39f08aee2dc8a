"""/v1/conversations/{id}/items: the turns of a session, and what waits to be read, as items."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from longmem.adapters.server.chat_input import is_retry
from longmem.adapters.server.context import Context
from longmem.adapters.server.conversations_page import After, Limit, Order, page, whole
from longmem.adapters.server.conversations_pending import Pending, Waiting
from longmem.adapters.server.conversations_state import Conversation
from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.items import Item, fallback_id, message_items, read_items
from longmem.adapters.server.responses_flights import flights_of
from longmem.adapters.server.routing import new_router
from longmem.dialogue import turn_message
from longmem.types import Turn

_CHUNK = 64
"""Turns read at once."""


class NewItems(BaseModel):
    """Items to add."""

    model_config = ConfigDict(strict=True)

    items: Annotated[list[Any], Field(min_length=1)]


@dataclass(frozen=True)
class Place:
    """Where items stand: in a turn, or among those that wait."""

    items: list[Item]
    turn: int | None = None
    waiting: Waiting | None = None


class ItemRoutes:
    """What the routes answer.

    Args:
        context: the application's.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._dialogue = context, context.dialogue
        self._changing = threading.Lock()

    def create_items(
        self, conversation_id: str, body: NewItems, request: Request
    ) -> dict[str, Any]:
        """Add items, which are read with the next response."""
        owner = self._context.owner(request)
        Conversation(self._dialogue, owner, conversation_id).check()
        messages, batch = read_items(body.items, "items"), _digest(body.items)
        pending = Pending(self._dialogue, owner, conversation_id)
        with self._changing:
            added = _same(pending, batch, len(messages)) if is_retry(request.headers) else []
            added = added or pending.add(messages, batch)
        return whole(item for each in added for item in each.items)

    def list_items(
        self,
        conversation_id: str,
        request: Request,
        after: After = None,
        limit: Limit = 20,
        order: Order = "desc",
    ) -> dict[str, Any]:
        """The items of a conversation."""
        talk = Conversation(self._dialogue, self._context.owner(request), conversation_id)
        found = places(talk, newest_first=order == "desc")
        step = -1 if order == "desc" else 1
        return page((item for at in found for item in at.items[::step]), after=after, limit=limit)

    def retrieve_item(self, conversation_id: str, item_id: str, request: Request) -> dict[str, Any]:
        """One item."""
        talk = Conversation(self._dialogue, self._context.owner(request), conversation_id)
        return find(talk, item_id)[1]

    def delete_item(self, conversation_id: str, item_id: str, request: Request) -> dict[str, Any]:
        """Forget an item; what was said after it is read again without it."""
        owner = self._context.owner(request)
        talk = Conversation(self._dialogue, owner, conversation_id)
        with flights_of(self._dialogue).conversation(owner, conversation_id):
            with self._changing:
                place, _ = find(talk, item_id)
                if place.waiting is not None:
                    Pending(self._dialogue, owner, conversation_id).remove(place.waiting, item_id)
            if place.turn is not None:
                _check_alone(place, item_id)
                self._dialogue.forget(owner, talk.session, place.turn)
        return talk.object()


def router(context: Context) -> APIRouter:
    """The routes."""
    routes, own = new_router(tags=["conversations"]), ItemRoutes(context)
    routes.post("/v1/conversations/{conversation_id}/items")(own.create_items)
    routes.get("/v1/conversations/{conversation_id}/items")(own.list_items)
    routes.get("/v1/conversations/{conversation_id}/items/{item_id}")(own.retrieve_item)
    routes.delete("/v1/conversations/{conversation_id}/items/{item_id}")(own.delete_item)
    return routes


def places(talk: Conversation, *, newest_first: bool) -> Iterator[Place]:
    """All items of a conversation, turn by turn, oldest or newest first.

    Raises:
        ApiError: 404, there is no such conversation.
    """
    session = talk.session
    pending = Pending(talk.dialogue, talk.owner, talk.id).all()
    waiting = [Place(each.items, waiting=each) for each in pending]
    if newest_first:
        yield from reversed(waiting)
        yield from _turn_places(talk, session, newest_first)
    else:
        yield from _turn_places(talk, session, newest_first)
        yield from waiting


def find(talk: Conversation, item_id: str) -> tuple[Place, Item]:
    """One item, and where it stands.

    Raises:
        ApiError: 404.
    """
    for place in places(talk, newest_first=True):
        for item in place.items:
            if item["id"] == item_id:
                return place, item
    message = f"conversation {talk.id!r} has no item {item_id!r}; it may have been deleted"
    raise ApiError(404, "item_not_found", message)


def _turn_places(talk: Conversation, session: str, newest_first: bool) -> Iterator[Place]:
    n = talk.dialogue.info(talk.owner, session).n_turns
    starts = range(0, n, _CHUNK)
    for start in reversed(starts) if newest_first else starts:
        turns = talk.dialogue.turns(talk.owner, session, start, min(start + _CHUNK, n))
        for turn in reversed(turns) if newest_first else turns:
            if items := _turn_items(talk, turn):
                yield Place(items, turn=turn.index)


def _turn_items(talk: Conversation, turn: Turn) -> list[Item]:
    message = turn_message(turn)
    if turn.index == 0 and turn.role == "system":
        message = replace(message, text=talk.item_text(turn))
        if not message.text:
            return []
    if message.id is None:
        message = replace(message, id=fallback_id(talk.id, turn.index, turn.created_at))
    cut = turn.extra.get("finish_reason") == "length"
    return message_items(message, status="incomplete" if cut else "completed")


def _check_alone(place: Place, item_id: str) -> None:
    """An answer and its tool calls are one turn, which goes as a whole or not at all."""
    if len(place.items) > 1:
        raise ApiError(
            400,
            "item_of_larger_turn",
            f"item {item_id!r} is one of {len(place.items)} of a turn that was read as a whole; to "
            f"forget all of it, use /v1/longmem/sessions with turn {place.turn}",
        )


def _same(pending: Pending, batch: str, n: int) -> list[Waiting]:
    """The last `n` that wait, if they are the same items."""
    last = pending.all()[-n:]
    return last if len(last) == n and all(each.batch == batch for each in last) else []


def _digest(items: list[Any]) -> str:
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:32]
