"""Server-sent events: a response that is written while the reply is decoded."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from longmem.adapters.server.context import Context
from longmem.adapters.server.errors import ApiError, as_api_error
from longmem.adapters.server.exchange import Run

if TYPE_CHECKING:
    from longmem.dialogue import Request as DialogueRequest

_log = logging.getLogger("longmem.server")
_PING = ": ping\n\n"
Frames = Callable[[Run], AsyncIterator[str]]
"""Turns what comes of a run into the frames of one dialect."""
ErrorFrame = Callable[[Run, ApiError], str]
"""What a dialect says when a reply that has begun fails."""


def frame(data: Mapping[str, Any] | str, event: str | None = None) -> str:
    """One server-sent event.

    Args:
        data: a JSON document, or the text itself.
        event: its name, in dialects that name events.
    """
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return f"event: {event}\ndata: {text}\n\n" if event else f"data: {text}\n\n"


def error_frame(run: Run, error: ApiError) -> str:
    """The envelope as an event, as the chat dialect has it."""
    return frame(error.envelope)


async def event_stream(
    context: Context,
    http: Request,
    request: DialogueRequest,
    frames: Frames,
    *,
    headers: Mapping[str, str] | None = None,
    on_error: ErrorFrame = error_frame,
) -> Response:
    """A streaming response to `http`.

    What fails before the first event is raised, to become an HTTP status, unless the first event takes
    longer than `Settings.first_event_seconds`.

    Args:
        frames: the dialect.
        headers: of the response, besides those that name the session.
        on_error: the dialect's last words.
    """
    run = Run(context, http, request)
    try:
        await run.begin()
        await run.peek(context.settings.first_event_seconds)
    except BaseException:
        await run.close()
        raise
    return _EventStream(
        run,
        frames(run),
        on_error,
        {**run.headers, **(headers or {})},
        context.settings.ping_seconds,
    )


class _EventStream(Response):
    """The response; when it ends, for whatever reason, so does its run."""

    media_type = "text/event-stream"

    def __init__(
        self,
        run: Run,
        frames: AsyncIterator[str],
        on_error: ErrorFrame,
        headers: Mapping[str, str],
        ping_seconds: float,
    ) -> None:
        self._run, self._frames, self._on_error = run, frames, on_error
        self._ping_seconds = ping_seconds
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def write(text: str, more: bool = True) -> None:
            body = text.encode("utf-8")
            await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
            await send(start)
            async with aclosing(_with_pings(self._whole(), self._ping_seconds)) as texts:
                async for text in texts:
                    await write(text)
            await write("", more=False)
        finally:
            await self._run.close()

    async def _whole(self) -> AsyncIterator[str]:
        """The frames; if they fail, the dialect's last words."""
        try:
            async for text in self._frames:
                yield text
        except Exception as error:
            yield self._last_words(error)

    def _last_words(self, error: Exception) -> str:
        told = as_api_error(error)
        if told.status >= 500 and told is not error:
            _log.error("a reply failed in the middle of its stream", exc_info=error)
        return self._on_error(self._run, told)


async def _with_pings(frames: AsyncIterator[str], seconds: float) -> AsyncGenerator[str, None]:
    """The frames, and a comment whenever none comes for a while: proxies cut silent connections."""
    while True:
        coming = asyncio.ensure_future(anext(frames, None))
        try:
            while not (await asyncio.wait({coming}, timeout=seconds))[0]:
                yield _PING
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
        if (text := coming.result()) is None:
            return
        yield text
