"""The outermost layer: a name for each request, and an end for clients that stop reading."""

from __future__ import annotations

import asyncio
import logging
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("longmem.server")


class ClientStalled(Exception):
    """The client takes nothing of its response."""


class Sending:
    """Middleware around everything.

    Args:
        app: the application.
        seconds: a client that takes nothing for this long is cut.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app, self._seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid.uuid4().hex}"
        name = (b"x-request-id", request_id.encode())

        async def patient(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), name]}
            try:
                async with asyncio.timeout(self._seconds):
                    await send(message)
            except TimeoutError:
                _cut(send)
                raise ClientStalled(request_id) from None

        try:
            await self._app(scope, receive, patient)
        except ClientStalled:
            _log.warning("%s: client read nothing for %g s, cut", request_id, self._seconds)
            await asyncio.sleep(0)  # the server is told that the connection is gone


def _cut(send: Send) -> None:
    """Drop the connection with what stands in its buffer; closing would wait for the client to read it.

    ASGI has no word for it. uvicorn hands out a method of the object that holds the connection.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if isinstance(transport, asyncio.Transport):
        transport.abort()
