"""Makes one response: what it continues, whether it repeats another, what is kept of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from longmem.adapters.server.chat_input import check_model, idempotency_key, is_retry
from longmem.adapters.server.context import Context
from longmem.adapters.server.conversations_pending import Pending
from longmem.adapters.server.conversations_state import Conversation
from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.event_stream import event_stream
from longmem.adapters.server.exchange import Run, reply
from longmem.adapters.server.items import Item, joined, message_items, new_id, read_items
from longmem.adapters.server.responses_body import ResponseBody
from longmem.adapters.server.responses_events import Events
from longmem.adapters.server.responses_flights import (
    Flight,
    conversation_busy,
    conversation_name,
    flights_of,
    request_busy,
)
from longmem.adapters.server.responses_head import Head, find_head, pinned_tools, reread
from longmem.adapters.server.responses_object import Draft
from longmem.adapters.server.responses_repeat import find_repeated
from longmem.adapters.server.responses_store import (
    StoredResponse,
    StoredResponses,
    body_digest,
    request_key,
)
from longmem.adapters.server.sampling import to_sampling
from longmem.dialogue import Message, Outcome, TextDelta, fork_name
from longmem.dialogue import Request as DialogueRequest
from longmem.errors import SystemChangedError

if TYPE_CHECKING:
    from longmem.store import Record


class Creation:
    """One ``POST /v1/responses``.

    Args:
        context: the application's.
        http: the request.
        body: what it asks for.

    Raises:
        ApiError: the body is refused.
        LongMemError: values that cannot work.
    """

    def __init__(self, context: Context, http: Request, body: ResponseBody) -> None:
        body.check()
        check_model(body.model, context.settings)
        self._context, self._http, self._body = context, http, body
        self._dialogue, self._owner = context.dialogue, context.owner(http)
        self._input = read_items(body.input or [])
        limit = body.max_output_tokens
        self._sampling = to_sampling(context.settings, body, limit, param="max_output_tokens")
        self._tools = body.definitions()
        self._choice, self._schema = body.choice(), body.schema_of_reply()
        self._keyed = idempotency_key(http.headers)
        self._may_repeat = body.keeps and (is_retry(http.headers) or self._keyed is not None)
        self._key, self._said = request_key(body, self._keyed), body_digest(body)
        self._draft = Draft(new_id("resp"), new_id("msg"), body, int(time.time()))
        self._head = Head()
        self._object: dict[str, Any] | None = None

    async def answer(self) -> Response:
        """The response.

        Raises:
            ApiError: 404 for what it continues, 409 while another request stands in its way.
            LongMemError: and whatever the dialogue says.
        """
        flight = self._take_off()
        try:
            if self._may_repeat and (found := await run_in_threadpool(self._repeated)) is not None:
                return self._replayed(found)
            self._head = await run_in_threadpool(find_head, self._dialogue, self._owner, self._body)
            self._draft = self._draft.under(self._head.effective(self._body.instructions))
            return await self._respond(flight)
        except BaseException:
            flight.land()
            raise

    def _take_off(self) -> Flight:
        """Keep others out of the conversation, and repeats of this request waiting."""
        name, conversation = f"request/{self._owner or ''}/{self._key}", self._body.conversation_id
        names, refusals = [name], {name: request_busy()} if self._may_repeat else {}
        if conversation is not None and self._body.keeps:
            names.append(conversation_name(self._owner, conversation))
            refusals[names[-1]] = conversation_busy(conversation)
        return flights_of(self._dialogue).take(names, refusals)

    async def _respond(self, flight: Flight) -> Response:
        """Go on under what is pinned, or, where that changes, read the history again."""
        if self._head.keeps(self._body.instructions):
            try:
                return await self._say(self._following(), flight)
            except SystemChangedError:
                pass
        return await self._say(await run_in_threadpool(self._anew), flight)

    @property
    def _items(self) -> list[Item]:
        """The items it was asked with."""
        return [item for each in self._input for item in message_items(each)]

    @property
    def _conversation(self) -> Conversation | None:
        id = self._body.conversation_id
        return None if id is None else Conversation(self._dialogue, self._owner, id)

    def _repeated(self) -> StoredResponse | None:
        return find_repeated(
            self._dialogue,
            self._owner,
            self._key,
            self._body.conversation_id,
            None if self._keyed is None else self._said,
        )

    def _following(self) -> DialogueRequest:
        """What is asked of the dialogue when the system prompt stays as it is."""
        head, instructions = self._head, self._body.instructions
        begin = [] if head.pinned or not instructions else [Message("system", instructions)]
        messages = [*begin, *joined([*head.pending, *self._input])]
        if head.session is None:
            return self._request(messages, self._draft.id)
        place = {"at": head.at, "fork_id": self._draft.id, "always_fork": head.aside}
        return self._request(messages, head.session, **place)

    def _anew(self) -> DialogueRequest:
        """What is asked when the history has to be read again, under another system prompt."""
        history = reread(self._dialogue, self._owner, self._head, self._body)
        self._tools = self._tools or pinned_tools(self._head)
        messages = [*history, *joined([*self._head.pending, *self._input])]
        conversation = self._body.conversation_id
        session = self._draft.id if conversation is None else fork_name(conversation)
        return self._request(messages, session)

    def _request(self, messages: Sequence[Message], session: str, **place: Any) -> DialogueRequest:
        keeps = self._body.keeps
        return DialogueRequest(
            messages,
            session=session if keeps or self._head.session == session else None,
            scope="new",
            store=keeps,
            owner=self._owner,
            metadata=self._body.metadata,
            sampling=self._sampling,
            tools=self._tools,
            tool_choice=self._choice,
            schema=self._schema,
            records=self._records if keeps else None,
            message_id=self._draft.message_id,
            **place,
        )

    def _records(self, outcome: Outcome) -> list[Record]:
        """What becomes durable with the exchange."""
        assert outcome.session is not None and outcome.turn is not None
        self._object = self._draft.finished(outcome)
        stored = StoredResponse(
            self._object,
            self._items,
            outcome.session,
            outcome.turn,
            self._draft.message_id,
            self._key,
            self._said,
        )
        records = StoredResponses(self._dialogue.pool.store.records, self._owner).new(stored)
        if (conversation := self._conversation) is not None:
            if outcome.session != self._head.session or not self._head.begun:
                records += conversation.begun(outcome.session, self._draft.instructions)
            records += self._pending(conversation).read(self._head.upto)
        return records

    def _pending(self, conversation: Conversation) -> Pending:
        return Pending(self._dialogue, self._owner, conversation.id)

    async def _say(self, request: DialogueRequest, flight: Flight) -> Response:
        if self._body.stream:
            return await self._stream(request, flight)
        run = await reply(self._context, self._http, request)
        done = await self._finished(run)
        flight.land()
        return JSONResponse(done, headers=run.headers)

    async def _stream(self, request: DialogueRequest, flight: Flight) -> Response:
        events = Events(self._draft.message_id)

        async def frames(run: Run) -> AsyncIterator[str]:
            try:
                for text in events.begin(self._draft.started()):
                    yield text
                async for event in run.events():
                    if isinstance(event, TextDelta):
                        for text in events.text(event.text):
                            yield text
                for text in events.end(await self._finished(run)):
                    yield text
            finally:
                flight.land()

        def failed(run: Run, error: ApiError) -> str:
            code = "server_error" if error.status >= 500 else error.code
            return events.failed(self._draft.failed(code, error.message))

        return await event_stream(self._context, self._http, request, frames, on_error=failed)

    async def _finished(self, run: Run) -> dict[str, Any]:
        """The object of a run that is through."""
        conversation = self._conversation
        if conversation is not None and self._head.upto >= 0 and self._object is not None:
            await run_in_threadpool(self._pending(conversation).sweep)
        return self._object or self._draft.finished(run.outcome)

    def _replayed(self, found: StoredResponse) -> Response:
        headers = {"x-session-id": found.session}
        if not self._body.stream:
            return JSONResponse(found.object, headers=headers)
        frames = Events(found.message_id).replay(found.object)
        return StreamingResponse(frames, media_type="text/event-stream", headers=headers)
