"""POST /v1/chat/completions."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from longmem.adapters.server.aside import MANY, aside_if
from longmem.adapters.server.chat_input import chat_request
from longmem.adapters.server.chat_models import ChatRequest
from longmem.adapters.server.chat_output import chunks, completion
from longmem.adapters.server.context import Context
from longmem.adapters.server.event_stream import event_stream
from longmem.adapters.server.exchange import reply
from longmem.adapters.server.routing import new_router

_NAMES = {
    "x-session-id": ("the session; nothing is kept without it", None),
    "x-session-scope": ("what the messages are", ["auto", "new", "whole"]),
    "x-session-diverge": ("where they depart from it", ["fork", "rollback", "refuse"]),
    "x-session-system": ("if another system prompt is pinned", ["refuse", "keep"]),
    "idempotency-key": ("a request with the key of an earlier one gets its reply", None),
}
_HEADERS = {
    "parameters": [
        {
            "name": name,
            "in": "header",
            "description": text,
            "schema": {"type": "string", **({"enum": words} if words else {})},
        }
        for name, (text, words) in _NAMES.items()
    ]
}


def router(context: Context) -> APIRouter:
    """The route."""
    routes = new_router(tags=["chat"])
    model = context.settings.model

    @routes.post("/v1/chat/completions", response_model=None, openapi_extra=_HEADERS)
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        """Reply to messages: the new ones of a session, or the whole conversation once more.

        The header x-session-id names the session; without it nothing is kept.
        """
        id = f"chatcmpl-{uuid.uuid4().hex}"
        owner = context.owner(request)
        much = len(body.messages) > MANY
        asked = await aside_if(
            much, chat_request, body, request.headers, owner, context.settings, id
        )
        if body.stream:
            wants_usage = bool(body.stream_options and body.stream_options.include_usage)
            frames = chunks(model, context.fingerprint, wants_usage)
            return await event_stream(context, request, asked, frames)
        run = await reply(context, request, asked)
        return JSONResponse(completion(run, model, context.fingerprint), headers=run.headers)

    return routes
