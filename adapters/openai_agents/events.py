"""A reply as the SDK reads it: whole, or as the events of a Responses stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from agents.items import TResponseOutputItem, TResponseStreamEvent
from agents.usage import Usage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    ResponseUsage,
)
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from longmem.adapters.openai_agents.items import item_id, items_of
from longmem.dialogue import Outcome

_ITEMS: dict[str, Callable[..., TResponseOutputItem]] = {
    "message": ResponseOutputMessage,
    "function_call": ResponseFunctionToolCall,
    "reasoning": ResponseReasoningItem,
}
_EVENTS: dict[str, Callable[..., TResponseStreamEvent]] = {
    "created": ResponseCreatedEvent,
    "output_item.added": ResponseOutputItemAddedEvent,
    "content_part.added": ResponseContentPartAddedEvent,
    "output_text.delta": ResponseTextDeltaEvent,
    "output_text.done": ResponseTextDoneEvent,
    "content_part.done": ResponseContentPartDoneEvent,
    "function_call_arguments.delta": ResponseFunctionCallArgumentsDeltaEvent,
    "function_call_arguments.done": ResponseFunctionCallArgumentsDoneEvent,
    "output_item.done": ResponseOutputItemDoneEvent,
    "completed": ResponseCompletedEvent,
}


def output_of(outcome: Outcome) -> list[TResponseOutputItem]:
    """The reply's items; its text is incomplete where it met the limit of tokens."""
    items = items_of(outcome.message)
    if outcome.finish_reason == "length":
        items = [i | {"status": "incomplete"} if i["type"] == "message" else i for i in items]
    return [_ITEMS[item["type"]](**item) for item in items]


def usage_of(outcome: Outcome) -> Usage:
    """Tokens: cached ones are history that stood in memory, the other input ones were read."""
    numbers = _response_usage(outcome)
    return Usage(
        requests=1,
        input_tokens=numbers.input_tokens,
        output_tokens=numbers.output_tokens,
        total_tokens=numbers.total_tokens,
        input_tokens_details=numbers.input_tokens_details,
        output_tokens_details=numbers.output_tokens_details,
    )


class ResponseEvents:
    """The events of one streamed reply, in order and numbered.

    Args:
        response_id: id of the response; "" where nothing is stored.
        message_id: id of the reply's message.
        model: name of the model.
    """

    def __init__(self, response_id: str, message_id: str, model: str) -> None:
        self._message_id = message_id
        self._number = -1
        self._text: list[str] = []
        self._response = Response(
            id=response_id,
            created_at=time.time(),
            model=model,
            object="response",
            output=[],
            parallel_tool_calls=False,
            status="in_progress",
            tool_choice="auto",
            tools=[],
        )

    def begin(self) -> Iterator[TResponseStreamEvent]:
        """Before anything was said."""
        yield self._event("created", response=self._response)

    def text(self, delta: str) -> Iterator[TResponseStreamEvent]:
        """The next characters."""
        if not self._text:
            yield from self._open_text()
        self._text.append(delta)
        yield self._event("output_text.delta", **self._place(), delta=delta, logprobs=[])

    def end(self, outcome: Outcome) -> Iterator[TResponseStreamEvent]:
        """The calls, and the whole response."""
        output = output_of(outcome)
        said = [item for item in output if isinstance(item, ResponseOutputMessage)]
        for message in said:
            yield from self._close_text(message)
        calls = (item for item in output if isinstance(item, ResponseFunctionToolCall))
        for index, call in enumerate(calls, start=len(said)):
            yield from self._call(call, index)
        cut = outcome.finish_reason == "length"
        whole = self._response.model_copy(
            update={
                "output": output,
                "usage": _response_usage(outcome),
                "status": "incomplete" if cut else "completed",
                "incomplete_details": IncompleteDetails(reason="max_output_tokens")
                if cut
                else None,
            }
        )
        yield self._event("completed", response=whole)

    def _open_text(self) -> Iterator[TResponseStreamEvent]:
        message = ResponseOutputMessage(
            id=item_id(self._message_id, "msg"),
            content=[],
            role="assistant",
            status="in_progress",
            type="message",
        )
        yield self._event("output_item.added", item=message, output_index=0)
        yield self._event("content_part.added", **self._place(), part=_text_part(""))

    def _close_text(self, message: ResponseOutputMessage) -> Iterator[TResponseStreamEvent]:
        if not self._text:
            yield from self._open_text()
        text = "".join(self._text)
        yield self._event("output_text.done", **self._place(), text=text, logprobs=[])
        yield self._event("content_part.done", **self._place(), part=_text_part(text))
        yield self._event("output_item.done", item=message, output_index=0)

    def _call(self, call: ResponseFunctionToolCall, index: int) -> Iterator[TResponseStreamEvent]:
        begun = call.model_copy(update={"arguments": "", "status": "in_progress"})
        place = {"item_id": call.id, "output_index": index}
        written = call.arguments
        yield self._event("output_item.added", item=begun, output_index=index)
        yield self._event("function_call_arguments.delta", **place, delta=written)
        yield self._event(
            "function_call_arguments.done", **place, arguments=written, name=call.name
        )
        yield self._event("output_item.done", item=call, output_index=index)

    def _place(self) -> dict[str, Any]:
        """Where the text is."""
        id = item_id(self._message_id, "msg")
        return {"content_index": 0, "item_id": id, "output_index": 0}

    def _event(self, kind: str, **fields: Any) -> TResponseStreamEvent:
        self._number += 1
        return _EVENTS[kind](type=f"response.{kind}", sequence_number=self._number, **fields)


def _response_usage(outcome: Outcome) -> ResponseUsage:
    read, cached = outcome.read, outcome.from_memory
    generated = outcome.reply.usage.generated
    return ResponseUsage(
        input_tokens=cached + read,
        input_tokens_details=InputTokensDetails.model_validate(
            {"cached_tokens": cached, "cache_write_tokens": read}
        ),
        output_tokens=generated,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=cached + read + generated,
    )


def _text_part(text: str) -> ResponseOutputText:
    return ResponseOutputText(annotations=[], text=text, type="output_text", logprobs=[])
