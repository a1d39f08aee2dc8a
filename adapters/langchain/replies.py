"""An exchange's outcome as LangChain's messages and chunks."""

from __future__ import annotations

import json
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages import ToolCall as LangChainCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from longmem.adapters.langchain.place import Place, branch_details
from longmem.dialogue import Event, Outcome, TextDelta, ToolCallsReady
from longmem.tools import ToolCall


def ai_message(outcome: Outcome, place: Place, model_name: str) -> AIMessage:
    """The reply as one message.

    Args:
        outcome: of the exchange.
        place: session that the call named.
        model_name: for ``response_metadata``.
    """
    said = outcome.message
    calls, invalid = _calls(said.tool_calls)
    return AIMessage(
        content=said.text,
        id=said.id,
        tool_calls=calls,
        invalid_tool_calls=invalid,
        additional_kwargs=_reasoning(outcome),
        usage_metadata=usage(outcome),
        response_metadata=details(outcome, place, model_name),
    )


def event_chunk(event: Event, message_id: str) -> ChatGenerationChunk | None:
    """The chunk of one event of a stream; None if it has nothing to tell LangChain."""
    match event:
        case TextDelta(text) if text:
            return _chunk(AIMessageChunk(content=text, id=message_id))
        case ToolCallsReady(calls):
            pieces = [
                tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=index)
                for index, call in enumerate(calls)
            ]
            return _chunk(AIMessageChunk(content="", id=message_id, tool_call_chunks=pieces))
    return None


def last_chunk(
    outcome: Outcome, place: Place, model_name: str, message_id: str
) -> ChatGenerationChunk:
    """The chunk that ends a stream: usage and details, no text."""
    return _chunk(
        AIMessageChunk(
            content="",
            id=message_id,
            additional_kwargs=_reasoning(outcome),
            usage_metadata=usage(outcome),
            response_metadata=details(outcome, place, model_name),
            chunk_position="last",
        )
    )


def usage(outcome: Outcome) -> UsageMetadata:
    """Tokens of the exchange. `cache_read` is the history that stood in memory and was not read
    again; the input is that and what was read."""
    taken, said = outcome.read + outcome.from_memory, outcome.reply.usage.generated
    return UsageMetadata(
        input_tokens=taken,
        output_tokens=said,
        total_tokens=taken + said,
        input_token_details=InputTokenDetails(cache_read=outcome.from_memory),
    )


def details(outcome: Outcome, place: Place, model_name: str) -> dict[str, Any]:
    """A reply's ``response_metadata``: model, end, session and turn."""
    return {
        "model_name": model_name,
        "model_provider": "longmem",
        "finish_reason": outcome.finish_reason,
        **branch_details(outcome, place),
    }


def _reasoning(outcome: Outcome) -> dict[str, Any]:
    return {"reasoning_content": outcome.message.reasoning} if outcome.message.reasoning else {}


def _calls(
    calls: tuple[ToolCall, ...],
) -> tuple[list[LangChainCall], list[InvalidToolCall]]:
    """Calls whose arguments are a JSON object, and those whose are not."""
    valid: list[LangChainCall] = []
    invalid: list[InvalidToolCall] = []
    for call in calls:
        try:
            arguments = json.loads(call.arguments)
            problem = None if isinstance(arguments, dict) else "the arguments are no JSON object"
        except ValueError as error:
            arguments, problem = None, str(error)
        if problem is None:
            valid.append(LangChainCall(name=call.name, args=arguments, id=call.id))
        else:
            invalid.append(
                InvalidToolCall(
                    type="invalid_tool_call",
                    name=call.name,
                    args=call.arguments,
                    id=call.id,
                    error=problem,
                )
            )
    return valid, invalid


def _chunk(message: AIMessageChunk) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=message)
