"""/v1/conversations: sessions under the names and with the fields of OpenAI's dialect."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from longmem.adapters.server.chat_models import Metadata
from longmem.adapters.server.context import Context
from longmem.adapters.server.conversations_pending import Pending
from longmem.adapters.server.conversations_state import Conversation
from longmem.adapters.server.items import new_id, read_items
from longmem.adapters.server.responses_flights import flights_of
from longmem.adapters.server.routing import new_router


class NewConversation(BaseModel):
    """What a conversation begins with."""

    model_config = ConfigDict(strict=True)

    items: list[Any] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(BaseModel):
    """What of a conversation can be changed."""

    model_config = ConfigDict(strict=True)

    metadata: Metadata | None = None


class ConversationRoutes:
    """What the routes answer.

    Args:
        context: the application's.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._dialogue = context, context.dialogue

    def create_conversation(
        self, request: Request, body: NewConversation | None = None
    ) -> dict[str, Any]:
        """Begin a conversation; its items are read with its first response."""
        owner, id = self._context.owner(request), new_id("conv")
        given = body or NewConversation()
        messages = read_items(given.items or [], "items")
        self._dialogue.create(owner, id, metadata=given.metadata)
        if messages:
            Pending(self._dialogue, owner, id).add(messages, "")
        return Conversation(self._dialogue, owner, id).object()

    def retrieve_conversation(self, conversation_id: str, request: Request) -> dict[str, Any]:
        """A conversation; every session is one."""
        return Conversation(self._dialogue, self._context.owner(request), conversation_id).object()

    def update_conversation(
        self, conversation_id: str, body: ConversationUpdate, request: Request
    ) -> dict[str, Any]:
        """Replace its metadata."""
        conversation = Conversation(self._dialogue, self._context.owner(request), conversation_id)
        conversation.set_metadata(body.metadata or {})
        return conversation.object()

    def delete_conversation(self, conversation_id: str, request: Request) -> dict[str, Any]:
        """Delete a conversation, and all responses in it."""
        owner = self._context.owner(request)
        with flights_of(self._dialogue).conversation(owner, conversation_id):
            Conversation(self._dialogue, owner, conversation_id).delete()
        return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


def router(context: Context) -> APIRouter:
    """The routes."""
    routes, own = new_router(tags=["conversations"]), ConversationRoutes(context)
    routes.post("/v1/conversations")(own.create_conversation)
    routes.get("/v1/conversations/{conversation_id}")(own.retrieve_conversation)
    routes.post("/v1/conversations/{conversation_id}")(own.update_conversation)
    routes.delete("/v1/conversations/{conversation_id}")(own.delete_conversation)
    return routes
