"""A dialogue's reply as PydanticAI's response: whole, or as a stream of events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pydantic_ai.messages import (
    FinishReason,
    ModelResponse,
    ModelResponsePart,
    ModelResponseStreamEvent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
)
from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

from longmem.dialogue import Outcome, TextDelta
from longmem.dialogue.async_exchange import AsyncExchange
from longmem.errors import SessionError

SYSTEM = "longmem"
"""What responses call their provider."""
_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "tool_calls": "tool_call"}


def response_of(outcome: Outcome, model_name: str) -> ModelResponse:
    """The whole reply; its id is that of its message."""
    return ModelResponse(
        parts=_parts(outcome),
        usage=_usage(outcome),
        model_name=model_name,
        provider_name=SYSTEM,
        provider_response_id=outcome.message.id,
        finish_reason=_FINISH[outcome.finish_reason],
    )


@dataclass
class StreamedReply(StreamedResponse):
    """An exchange as PydanticAI's events."""

    _exchange: AsyncExchange
    _name: str
    _timestamp: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        manager = self._parts_manager
        self.provider_response_id = self._exchange.message_id
        async for piece in self._exchange:
            if isinstance(piece, TextDelta):
                for event in manager.handle_text_delta(vendor_part_id="text", content=piece.text):
                    yield event
        outcome = self._exchange.outcome
        message = outcome.message
        if message.reasoning:
            for event in manager.handle_thinking_delta(
                vendor_part_id="thinking", content=message.reasoning
            ):
                yield event
        for call in message.tool_calls:
            yield manager.handle_tool_call_part(
                vendor_part_id=call.id,
                tool_name=call.name,
                args=call.arguments,
                tool_call_id=call.id,
            )
        self._usage = _usage(outcome)
        self.finish_reason = _FINISH[outcome.finish_reason]

    async def close_stream(self) -> None:
        """Drop the exchange."""
        await self._exchange.cancel()

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        """What a dropped exchange raises."""
        return (SessionError,)

    @property
    def model_name(self) -> str:
        """As `LongMemModel.model_name`."""
        return self._name

    @property
    def provider_name(self) -> str:
        """ "longmem"."""
        return SYSTEM

    @property
    def provider_url(self) -> None:
        """There is none."""
        return None

    @property
    def timestamp(self) -> datetime:
        """When the reply began."""
        return self._timestamp


def _parts(outcome: Outcome) -> list[ModelResponsePart]:
    message = outcome.message
    parts: list[ModelResponsePart] = []
    if message.reasoning:
        parts.append(ThinkingPart(message.reasoning))
    if message.text:
        parts.append(TextPart(message.text))
    return parts + [
        ToolCallPart(call.name, call.arguments, tool_call_id=call.id) for call in message.tool_calls
    ]


def _usage(outcome: Outcome) -> RequestUsage:
    """Cached tokens are history that stood in memory; the other input ones were read."""
    return RequestUsage(
        input_tokens=outcome.from_memory + outcome.read,
        cache_read_tokens=outcome.from_memory,
        cache_write_tokens=outcome.read,
        output_tokens=outcome.reply.usage.generated,
    )
