"""/v1/responses: make, retrieve, delete."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from longmem.adapters.server.aside import MANY, aside_if
from longmem.adapters.server.context import Context
from longmem.adapters.server.conversations_page import After, Limit, Order, page
from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.responses_body import ResponseBody
from longmem.adapters.server.responses_create import Creation
from longmem.adapters.server.responses_events import Events
from longmem.adapters.server.responses_head import response_not_found
from longmem.adapters.server.responses_store import StoredResponse, StoredResponses
from longmem.adapters.server.routing import new_router
from longmem.errors import SessionNotFoundError

StartingAfter = Annotated[
    int | None, Query(ge=0, le=2**31, description="sequence number of the last event that is known")
]


class ResponseRoutes:
    """What the routes answer.

    Args:
        context: the application's.
    """

    def __init__(self, context: Context) -> None:
        self._context, self._dialogue = context, context.dialogue

    def _responses(self, request: Request) -> StoredResponses:
        records = self._dialogue.pool.store.records
        return StoredResponses(records, self._context.owner(request))

    def _stored(self, request: Request, id: str) -> StoredResponse:
        found = self._responses(request).get(id)
        if found is None:
            raise response_not_found(id)
        return found

    async def create_response(self, body: ResponseBody, request: Request) -> Response:
        """Reply to items: behind an earlier response, at the end of a conversation, or anew."""
        much = len(body.input or ()) > MANY  # a long text is much, too: a digest is made of it
        creation = await aside_if(much, Creation, self._context, request, body)
        return await creation.answer()

    def retrieve_response(
        self,
        response_id: str,
        request: Request,
        stream: bool = False,
        starting_after: StartingAfter = None,
    ) -> Response:
        """A stored response; as a stream, its events from one on."""
        found = self._stored(request, response_id)
        if not stream:
            return JSONResponse(found.object)
        frames = Events(found.message_id).replay(found.object)
        first = 0 if starting_after is None else starting_after + 1
        return StreamingResponse(islice(frames, first, None), media_type="text/event-stream")

    def delete_response(self, response_id: str, request: Request) -> dict[str, Any]:
        """Forget a stored response; its session goes with the last response in it."""
        found, responses = self._stored(request, response_id), self._responses(request)
        last = responses.of_session(found.session) == [found.id]
        if last and found.session.startswith("resp_"):  # a session that responses began
            with suppress(SessionNotFoundError):
                self._dialogue.delete(self._context.owner(request), found.session)
        responses.delete(found)
        return {"id": response_id, "object": "response", "deleted": True}

    def list_input_items(
        self,
        response_id: str,
        request: Request,
        after: After = None,
        limit: Limit = 20,
        order: Order = "desc",
    ) -> dict[str, Any]:
        """The items a stored response was asked with."""
        items = list(self._stored(request, response_id).input)
        return page(items if order == "asc" else items[::-1], after=after, limit=limit)

    def cancel_response(self, response_id: str, request: Request) -> dict[str, Any]:
        """Refused: only responses made in the background can be cancelled, and none are here."""
        self._stored(request, response_id)
        raise ApiError(
            400,
            "response_not_cancellable",
            f"response {response_id!r} is complete; to cancel one that is being made, close its "
            "connection",
        )


def router(context: Context) -> APIRouter:
    """The routes."""
    routes, own = new_router(tags=["responses"]), ResponseRoutes(context)
    routes.post("/v1/responses", response_model=None)(own.create_response)
    routes.get("/v1/responses/{response_id}", response_model=None)(own.retrieve_response)
    routes.delete("/v1/responses/{response_id}")(own.delete_response)
    routes.get("/v1/responses/{response_id}/input_items")(own.list_input_items)
    routes.post("/v1/responses/{response_id}/cancel")(own.cancel_response)
    return routes
