"""`create_app`: the whole application, from its routers and layers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from longmem import __version__
from longmem.adapters.server import (
    chat,
    conversations,
    conversations_items,
    models,
    own,
    responses,
    status,
)
from longmem.adapters.server.admission import Admission
from longmem.adapters.server.body import Body
from longmem.adapters.server.context import Context
from longmem.adapters.server.errors import (
    ApiError,
    as_api_error,
    framework_error,
    validation_error,
)
from longmem.adapters.server.sending import Sending
from longmem.adapters.server.settings import Settings
from longmem.errors import LongMemError

if TYPE_CHECKING:
    from longmem.dialogue import Dialogue

_ROUTERS: tuple[Callable[[Context], APIRouter], ...] = (
    chat.router,
    responses.router,
    conversations.router,
    conversations_items.router,
    own.router,
    models.router,
    status.router,
)


_THREADS = 256
"""In which routes wait for sessions and the store: several owners' at once, each with as many requests
as it may have. There are 40 otherwise."""


def create_app(dialogue: Dialogue, settings: Settings | None = None) -> FastAPI:
    """The server's application, for `run` or any ASGI server.

    Args:
        dialogue: who reads and replies; stays open for as long as the application is served.
        settings: keys, limits and names.
    """
    settings = settings or Settings()
    context = Context(dialogue, settings)
    app = _App(settings.send_seconds, context)
    app.add_middleware(Body, settings.max_body, settings.body_seconds)
    app.add_middleware(Admission, settings, context.traffic)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    for make in _ROUTERS:
        app.include_router(make(context))
    return app


class _App(FastAPI):
    """FastAPI inside `Sending`, which has to be outside of what FastAPI itself puts around routes."""

    def __init__(self, send_seconds: float, context: Context) -> None:
        super().__init__(
            title="longmem",
            version=__version__,
            description="Conversations without an end, in OpenAI's dialects.",
            redirect_slashes=False,
            lifespan=_with_threads,
        )
        self.state.context = context
        self._sending = Sending(super().__call__, send_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._sending(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """The description of the API, without the framework's own form of a refusal."""
        if self.openapi_schema is None:
            schema = super().openapi()
            for path in schema.get("paths", {}).values():
                for operation in path.values():
                    operation.get("responses", {}).pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema.get("components", {}).get("schemas", {}).pop(name, None)
        return super().openapi()


@asynccontextmanager
async def _with_threads(app: FastAPI) -> AsyncIterator[None]:
    threads = anyio.to_thread.current_default_thread_limiter()
    threads.total_tokens = max(threads.total_tokens, _THREADS)
    yield


async def _refused(request: Request, error: Exception) -> Response:
    return as_api_error(error).response()


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return validation_error(error).response()


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return framework_error(error.status_code, error.detail, error.headers).response()


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Any]] = {
    ApiError: _refused,
    LongMemError: _refused,
    RequestValidationError: _invalid,
    HTTPException: _framework,
    Exception: _refused,
}
