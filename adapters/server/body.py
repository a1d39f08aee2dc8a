"""Reads a request's body before a route sees it: JSON, no larger than allowed, and not for ever."""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longmem.adapters.server.errors import ApiError

_DISCARDED = 8
"""So many times the limit is read and thrown away, so that the client comes to read the answer; most
look only when they have sent all. What is larger is cut."""


class ClientGone(Exception):
    """The client closed the connection."""


class Body:
    """Middleware that hands bodies on in one piece.

    Args:
        app: what comes next.
        most: longest body, in bytes.
        seconds: in which it has to be there.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            body = await self._read(headers, receive)
            if body and not _says_json(headers.get("content-type", "")):
                raise _no_json()
        except ClientGone:
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        deadline, body, size = time.monotonic() + self._seconds, bytearray(), 0
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._most and "expect" in headers:
            raise self._too_large()  # it asked first: nothing is on its way
        more = True
        while more:
            message = await self._next(receive, deadline)
            part: bytes = message.get("body", b"")
            more, size = message.get("more_body", False), size + len(part)
            if size <= self._most:
                body += part
            elif size > _DISCARDED * self._most:
                break
        if size > self._most:
            raise self._too_large()
        return bytes(body)

    async def _next(self, receive: Receive, deadline: float) -> Message:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                message = await receive()
        except TimeoutError:
            raise ApiError(
                408,
                "body_timeout",
                f"the body was not there after {self._seconds:g} seconds; send it again, faster",
                headers={"connection": "close"},
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        return message

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            "request_too_large",
            f"the body is larger than {self._most:,} bytes; send less, in several turns",
            headers={"connection": "close"},
        )


def _says_json(content_type: str) -> bool:
    """Whether it is a type that a web page cannot send to another site without being asked first."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def _no_json() -> ApiError:
    return ApiError(
        415,
        "unsupported_media_type",
        "a body is JSON here; send it with the header Content-Type: application/json",
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body, then whatever comes."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
