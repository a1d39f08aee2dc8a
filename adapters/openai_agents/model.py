"""`LongMemModel`: a model of the OpenAI Agents SDK that remembers."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from agents import Handoff, Model, ModelResponse, ModelSettings, ModelTracing, Tool
from agents.agent_output import AgentOutputSchemaBase
from agents.exceptions import UserError
from agents.items import TResponseInputItem, TResponseStreamEvent
from agents.tracing import GenerationSpanData, Span, generation_span

from longmem.adapters.openai_agents.definitions import (
    PROMPT_CACHE_KEY,
    sampling_for,
    schema_of,
    tool_choice_of,
    tool_definitions,
)
from longmem.adapters.openai_agents.events import ResponseEvents, output_of, usage_of
from longmem.adapters.openai_agents.items import items_of, messages_of
from longmem.adapters.openai_agents.named import Named, find, other_session
from longmem.adapters.openai_agents.reply_index import noted, place_of
from longmem.dialogue import Dialogue, Message, Outcome, Request, TextDelta
from longmem.sampling import Sampling

if TYPE_CHECKING:
    from openai.types.responses.response_prompt_param import ResponsePromptParam

    from longmem.store import Record


class LongMemModel(Model):
    """Replies from the memory of a session; of the items it is sent, only new ones are read.

    The session is, in this order: the run's ``conversation_id``, to which only new items are sent;
    that of ``previous_response_id``, continued behind that response (in a fork, if it went on since);
    the run's ``session=``, if that is a `LongMemSession` of the same dialogue; `session`; the run's
    ``session=`` of any other class. Without any nothing is stored and all items are read, unless
    ``ModelSettings(store=True)`` asks for a new session, which its response's id names. A list that
    was sent before, edited or cut off, goes on where it agrees with the memory.

    Errors that longmem raises on purpose (`LongMemError`) reach the caller of the run; hosted tools,
    files and images are refused with `UserError`.

    Args:
        dialogue: engine and store.
        session: id of the session for runs that name none.
        owner: whom the sessions belong to.
        sampling: how to decode, where `ModelSettings` does not say.
        on_system: what to do when instructions or tools are other than those a session was begun
            with, for instance after a handoff: "refuse", or "keep" the first ones, which stay pinned.
        name: what traces call the model.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        *,
        session: str | None = None,
        owner: str | None = None,
        sampling: Sampling | None = None,
        on_system: Literal["refuse", "keep"] = "refuse",
        name: str = "longmem",
    ) -> None:
        self.dialogue, self.owner, self.name = dialogue, owner, name
        self.session, self.sampling = session, sampling or Sampling()
        self.on_system: Literal["refuse", "keep"] = on_system

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
        prompt: ResponsePromptParam | None = None,
    ) -> ModelResponse:
        """The reply to the items; see `LongMemModel` for what is read and stored."""
        call = self._call(
            system_instructions, input, model_settings, tools, output_schema, handoffs,
            previous_response_id, conversation_id, prompt,
        )  # fmt: skip
        with generation_span(model=self.name, disabled=tracing.is_disabled()) as span:
            outcome = await self.dialogue.areply(call.request)
            _trace(span, outcome, tracing)
        return ModelResponse(output_of(outcome), usage_of(outcome), call.id_of(outcome))

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None = None,
        conversation_id: str | None = None,
        prompt: ResponsePromptParam | None = None,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """The events of the reply. Who leaves them before the last drops the exchange."""
        call = self._call(
            system_instructions, input, model_settings, tools, output_schema, handoffs,
            previous_response_id, conversation_id, prompt,
        )  # fmt: skip
        events = ResponseEvents(call.response_id, call.message_id, self.name)
        with generation_span(model=self.name, disabled=tracing.is_disabled()) as span:
            async with self.dialogue.astream(call.request) as exchange:
                for event in events.begin():
                    yield event
                async for delta in exchange:
                    if isinstance(delta, TextDelta):
                        for event in events.text(delta.text):
                            yield event
                outcome = exchange.outcome
            _trace(span, outcome, tracing)
            for event in events.end(outcome):
                yield event

    def _supports_default_prompt_cache_key(self) -> bool:
        """Asked by the SDK; with True it tells which session a run is for."""
        return True

    def _call(
        self,
        instructions: str | None,
        input: str | list[TResponseInputItem],
        settings: ModelSettings,
        tools: Sequence[Tool],
        output: AgentOutputSchemaBase | None,
        handoffs: Sequence[Handoff[Any]],
        previous: str | None,
        conversation: str | None,
        prompt: ResponsePromptParam | None,
    ) -> _Call:
        if prompt is not None:
            raise UserError("longmem has no stored prompts (prompt=); give the agent instructions")
        messages = messages_of(input)
        place = self._place(settings, previous, conversation, messages)
        name = secrets.token_hex(16)
        system = [Message("system", instructions)] if instructions else []
        request = Request(
            messages=[*system, *messages],
            session=place.session,
            scope=place.scope,
            at=place.at,
            on_system=self.on_system,
            store=settings.store is not False,
            owner=self.owner,
            tools=tool_definitions(tools, handoffs),
            tool_choice=tool_choice_of(settings),
            schema=schema_of(output),
            sampling=sampling_for(self.sampling, settings),
            records=self._records(place, name, input),
            message_id=f"msg_{name}",
        )
        return _Call(request, name)

    def _place(
        self,
        settings: ModelSettings,
        previous: str | None,
        conversation: str | None,
        messages: Sequence[Message],
    ) -> _Place:
        if previous is not None and conversation is not None:
            raise UserError(
                f"conversation_id {conversation!r} and previous_response_id {previous!r} both say "
                "what the run goes on from; give one of them"
            )
        if conversation is not None:
            return _Place(conversation, "new")
        if previous is not None:
            return self._behind(previous)
        key = (settings.extra_args or {}).get(PROMPT_CACHE_KEY)
        found = find(self.dialogue, self.owner, key) if isinstance(key, str) else None
        session = found.session if found else self.session
        if session is None and isinstance(key, str):
            session = other_session(key)
        if session is not None:
            return _Place(session, "auto", named=found)
        if settings.store:
            return _Place(f"conv_{secrets.token_hex(16)}", "new")
        _check_whole(messages)
        return _Place(None, "new")

    def _behind(self, response_id: str) -> _Place:
        name = response_id.removeprefix("resp_")
        found = place_of(self.dialogue, self.owner, f"msg_{name}")
        if found is None:
            raise UserError(
                f"there is no response {response_id!r} in this store: it was not stored, was rolled "
                "back or deleted; send the whole conversation, or a conversation_id"
            )
        return _Place(found.session, "new", found.turn)

    def _records(
        self, place: _Place, name: str, input: str | list[TResponseInputItem]
    ) -> Callable[[Outcome], Sequence[Record]]:
        note = noted(self.owner, f"msg_{name}")
        if place.named is None or isinstance(input, str):
            return note
        kept, session = place.named.kept, place.named.session

        def records(outcome: Outcome) -> Sequence[Record]:
            used = kept.used([dict(item) for item in input]) if outcome.session == session else []
            return [*note(outcome), *used]

        return records


@dataclass(frozen=True)
class _Place:
    """Where a request goes; `named` is the `LongMemSession` it comes from."""

    session: str | None
    scope: Literal["auto", "new"]
    at: int | None = None
    named: Named | None = None


@dataclass(frozen=True)
class _Call:
    """A request, and what its reply's message and response are called."""

    request: Request
    name: str

    @property
    def message_id(self) -> str:
        return f"msg_{self.name}"

    @property
    def response_id(self) -> str:
        return f"resp_{self.name}" if self.request.session and self.request.store else ""

    def id_of(self, outcome: Outcome) -> str | None:
        """The response's id; None where nothing was stored that it could name."""
        return self.response_id if outcome.session is not None else None


def _trace(span: Span[GenerationSpanData], outcome: Outcome, tracing: ModelTracing) -> None:
    """What the SDK's traces show of a call; its words only if traces may hold them."""
    usage = usage_of(outcome)
    numbers = {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
    span.span_data.usage = numbers
    if tracing.include_data():
        span.span_data.output = items_of(outcome.message)


def _check_whole(messages: Sequence[Message]) -> None:
    """Without a session nothing is known but what is sent.

    Raises:
        UserError: the output of a call is sent, and not the call.
    """
    called = {call.id for message in messages for call in message.tool_calls}
    for message in messages:
        if message.role == "tool" and message.tool_call_id not in called:
            raise UserError(
                f"the output of call {message.tool_call_id!r} was sent without the call, and no "
                "session is named that would hold it; give the run a conversation_id or session=, or "
                "for auto_previous_response_id=True set ModelSettings(store=True)"
            )
