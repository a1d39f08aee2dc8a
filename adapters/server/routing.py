"""Routers whose bodies are strict JSON, and whose errors are in the API's description."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from longmem.adapters.server.aside import aside_if
from longmem.adapters.server.strict_json import strict_json

_SMALL = 2**16
"""Bytes that are read at once; in larger bodies there is enough to read to hold up other requests."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorEnvelope(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorDetail = Field(description="What went wrong, to which part, and what to do next.")


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorEnvelope, "description": text}
    for status, text in {
        400: "The request is refused",
        401: "No valid API key",
        403: "A web page of another site, or another host name",
        404: "There is no such thing, or it is another owner's",
        408: "The body did not come",
        409: "The session is being written, or does not fit",
        413: "The request is too large",
        415: "The body is no JSON",
        429: "Too many requests",
        503: "Shutting down",
    }.items()
}


def new_router(**options: Any) -> APIRouter:
    """A router for JSON bodies: NaN, half surrogates and bottomless nesting are no JSON for it."""
    return APIRouter(route_class=_JsonRoute, responses=_ERRORS, **options)


class _JsonRequest(Request):
    """A request whose `json` takes what the standard allows, and no more."""

    async def json(self) -> Any:
        body, most = await self.body(), self.app.state.context.settings.max_values
        return await aside_if(len(body) > _SMALL, strict_json, body, most)


class _JsonRoute(APIRoute):
    """A route that reads its body with `strict_json`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle
