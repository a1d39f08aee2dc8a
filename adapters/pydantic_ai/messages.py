"""PydanticAI's messages as those of a dialogue."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    CachePoint,
    ModelMessage,
    ModelRequestPart,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    RetryFeedbackPart,
    RetryPromptPart,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from longmem.dialogue import Message
from longmem.tools import ToolCall


def messages_of(messages: Sequence[ModelMessage]) -> list[Message]:
    """One message per part of a request, and one per response.

    Raises:
        UserError: a part is neither text nor a tool's call or return.
    """
    said: list[Message] = []
    for message in messages:
        if isinstance(message, ModelResponse):
            said.append(_response(message))
        else:
            said += [each for part in message.parts for each in _request_part(part)]
    return said


def _request_part(part: ModelRequestPart) -> Iterator[Message]:
    if isinstance(part, SystemPromptPart):
        yield Message("system", part.content)
    elif isinstance(part, UserPromptPart):
        yield Message("user", _user_text(part))
    elif isinstance(part, ToolReturnPart):
        text, files = part.model_response_str_and_user_content()
        if any(not isinstance(each, str) for each in files):
            raise UserError(
                f"the tool {part.tool_name!r} returned a file, and longmem reads text alone; return "
                "a description of it"
            )
        yield Message("tool", text, tool_call_id=part.tool_call_id, name=part.tool_name)
    elif isinstance(part, RetryPromptPart) and part.tool_name is not None:
        text = part.model_response()
        yield Message("tool", text, tool_call_id=part.tool_call_id, name=part.tool_name)
    elif isinstance(part, RetryPromptPart | RetryFeedbackPart):
        yield Message("user", part.model_response())
    else:
        raise UserError(
            f"longmem reads prompts and tool returns, and no {type(part).__name__}; run the model "
            "through an Agent, which translates it, or leave it out"
        )


def _user_text(part: UserPromptPart) -> str:
    if isinstance(part.content, str):
        return part.content
    return "\n".join(
        _content_text(each) for each in part.content if not isinstance(each, CachePoint)
    )


def _content_text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, TextContent):
        return content.content
    raise UserError(
        f"longmem reads text alone, and a user prompt holds a {type(content).__name__}; describe it "
        "in words instead"
    )


def _response(message: ModelResponse) -> Message:
    """Text, thoughts and calls of a response; what other models called on their own servers is left
    out, as every adapter does."""
    texts, thoughts, calls = [], [], []
    for part in message.parts:
        if isinstance(part, TextPart):
            texts.append(part.content)
        elif isinstance(part, ThinkingPart):
            thoughts.append(part.content)
        elif isinstance(part, ToolCallPart):
            calls.append(ToolCall(part.tool_call_id, part.tool_name, _arguments(part)))
        elif not isinstance(part, NativeToolCallPart | NativeToolReturnPart):
            raise UserError(
                f"longmem reads text alone, and a response holds a {type(part).__name__}; leave it "
                "out of the message history"
            )
    return Message(
        "assistant",
        "\n\n".join(texts),
        id=message.provider_response_id,
        tool_calls=tuple(calls),
        reasoning="\n".join(thoughts),
    )


def _arguments(part: ToolCallPart) -> str:
    """A JSON object, whatever a model wrote."""
    text = part.args_as_json_str() or "{}"
    try:
        whole = isinstance(json.loads(text), dict)
    except ValueError:
        whole = False
    return text if whole else json.dumps({"arguments": text})
