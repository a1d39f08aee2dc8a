"""The messages of a chat completion, one by one: there may be tens of thousands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from longmem.adapters.server.chat_models import ChatMessage, Part
from longmem.adapters.server.errors import ApiError

if TYPE_CHECKING:
    from longmem.dialogue import Message


def read_messages(given: list[Any]) -> list[Message]:
    """What the dialogue is asked with.

    Args:
        given: as they came in the body.

    Raises:
        RequestValidationError: one is no message; tells of the first.
        ApiError: a part of a message is no text.
    """
    return [_message(_valid(given, index), index) for index in range(len(given))]


def _valid(given: list[Any], index: int) -> ChatMessage:
    try:
        return ChatMessage.model_validate(given[index])
    except ValidationError as error:
        place = ("body", "messages", index)
        told = [{**each, "loc": (*place, *each["loc"])} for each in error.errors()]
        raise RequestValidationError(told, body={"messages": given}) from None


def _message(message: ChatMessage, index: int) -> Message:
    from longmem.dialogue import Message
    from longmem.tools import ToolCall

    calls = [
        ToolCall(call.id, call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
    ]
    return Message(
        "system" if message.role == "developer" else message.role,
        read_parts(message.content, f"messages[{index}].content") or message.refusal or "",
        id=message.id,
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning=message.reasoning_content or "",
    )


def read_parts(content: str | list[Part] | None, param: str) -> str:
    """The text of a message's content.

    Raises:
        ApiError: a part is no text.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for i, part in enumerate(content):
        text = {"text": part.text, "refusal": part.refusal}.get(part.type)
        if text is None:
            raise ApiError(
                400,
                "unsupported_content_part",
                f"{param}[{i}] is a part of type {part.type!r}; only text can be read here",
                f"{param}[{i}]",
            )
        texts.append(text)
    return "".join(texts)
