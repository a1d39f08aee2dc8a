"""One exchange behind one HTTP request: it ends with the client, and never disturbs another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import Request

from longmem.adapters.server.context import Context
from longmem.adapters.server.errors import ApiError, as_api_error
from longmem.adapters.server.traffic import shutting_down

if TYPE_CHECKING:
    from longmem.dialogue import Event, Outcome
    from longmem.dialogue import Request as DialogueRequest

_AHEAD = 64
"""Events a client may lag behind before its exchange waits for it."""


class Run:
    """An exchange of the dialogue, in a task of its own: cancelling it is one call, from one place.

    Without the client's taking part it is cancelled when the connection closes; then nothing of it
    is committed.

    Args:
        context: the application's.
        http: the request it answers.
        request: what is asked of the dialogue.
        whole: nobody wants events; only the outcome counts.
    """

    def __init__(
        self, context: Context, http: Request, request: DialogueRequest, *, whole: bool = False
    ) -> None:
        self._context, self._http, self._request = context, http, request
        self._whole = whole
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_AHEAD)
        self._entered = asyncio.Event()
        self._error: Exception | None = None
        self._outcome: Outcome | None = None
        self._first: list[Event | None] = []
        self._dropped = ApiError(499, "client_gone", "the client closed the connection")
        self._measured = context.metrics.exchange()
        self.session: str | None = None
        """Public id of the session that is written, the fork's after a fork; None: of none."""
        self.forked_from: str | None = None
        """Public id of the session the messages diverged from."""
        self.message_id = ""
        """Of the reply."""
        self.created = int(time.time())
        """Unix seconds."""

    @property
    def headers(self) -> dict[str, str]:
        """Response headers that name the sessions."""
        names = {"x-session-id": self.session, "x-session-forked-from": self.forked_from}
        return {name: as_header(id) for name, id in names.items() if id is not None}

    @property
    def outcome(self) -> Outcome:
        """What came of it; known when the events are through."""
        assert self._outcome is not None, "the events are not through"
        return self._outcome

    async def begin(self) -> None:
        """Start, and wait until the session is there and its state is compared with the messages.

        Raises:
            Exception: whatever the dialogue says to the request.
        """
        self._task = asyncio.create_task(self._run())
        self._watch = asyncio.create_task(self._watch_client())
        self._context.traffic.droppable.add(self.drop)
        await self._entered.wait()
        if self._error is not None:
            raise self._error

    async def peek(self, seconds: float) -> None:
        """Wait for the first event, but no longer than `seconds`.

        Raises:
            Exception: the exchange failed before it.
        """
        try:
            async with asyncio.timeout(seconds):
                self._first.append(await self._events.get())
        except TimeoutError:
            return
        if self._first == [None] and self._error is not None:
            raise self._error

    async def events(self) -> AsyncIterator[Event]:
        """The events as they come; afterwards `outcome` is there.

        Raises:
            Exception: the exchange failed, or the client left.
        """
        while True:
            event = self._first.pop() if self._first else await self._events.get()
            if event is None:
                break
            self._room.release()
            yield event
        if self._error is not None:
            raise self._error

    def drop(self) -> None:
        """The server ends: so does the exchange, unless it is through."""
        self._dropped = shutting_down()
        self._task.cancel()

    async def close(self) -> None:
        """Drop the exchange, unless it is through; returns when the session is at rest."""
        self._context.traffic.droppable.discard(self.drop)
        self._watch.cancel()
        if not self._task.done():
            self._task.cancel()
        await asyncio.wait({self._task, self._watch})

    async def _run(self) -> None:
        try:
            await self._pump()
            self._measured.done(self.outcome)
        except asyncio.CancelledError:
            self._error = self._dropped
        except Exception as error:
            self._error = error
        finally:
            if self._error is not None:
                self._measured.failed(as_api_error(self._error).code)
            self._entered.set()
            self._events.put_nowait(None)

    async def _pump(self) -> None:
        async with self._context.dialogue.astream(self._request) as exchange:
            self.session, self.forked_from = exchange.session, exchange.forked_from
            self.message_id = exchange.message_id
            self._measured.entered()
            self._entered.set()
            if self._whole:
                self._outcome = await exchange.finish()
                return
            async for event in exchange:
                await self._room.acquire()
                self._events.put_nowait(event)
            self._outcome = exchange.outcome

    async def _watch_client(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self._task.cancel()


@asynccontextmanager
async def running(
    context: Context, http: Request, request: DialogueRequest, *, whole: bool = False
) -> AsyncIterator[Run]:
    """A `Run` that has begun; leaving the block drops it unless it is through."""
    run = Run(context, http, request, whole=whole)
    try:
        await run.begin()
        yield run
    finally:
        await run.close()


async def reply(context: Context, http: Request, request: DialogueRequest) -> Run:
    """See an exchange through; the `Run` has its `outcome`, and `headers` that name the session."""
    async with running(context, http, request, whole=True) as run:
        async for _ in run.events():
            pass
    return run


def as_header(text: str) -> str:
    """Any text as a header's value: its UTF-8, as `from_header` reads it."""
    return text.encode("utf-8").decode("latin-1")


def from_header(value: str) -> str:
    """A header's value as text."""
    try:
        return value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value
