"""The SDK's items (OpenAI Responses) and the messages of a dialogue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agents.exceptions import UserError
from agents.models.fake_id import FAKE_RESPONSES_ID

from longmem.dialogue import Message
from longmem.tools import ToolCall

Item = Mapping[str, Any]

_OURS = re.compile(r"(?:msg|fc|rs)_([0-9a-f]{32})(?:_\d+)?")
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_ROLES = {"developer": "system"}


def messages_of(items: str | Iterable[Item]) -> list[Message]:
    """The messages that items make: what an assistant thought, said and called is one of them.

    Raises:
        UserError: an item, or a part of one, is not text, a function call or its output.
    """
    if isinstance(items, str):
        return [Message("user", items)]
    messages: list[Message] = []
    for item in items:
        message = _message(item)
        if messages and _goes_on(messages[-1], message):
            message = _joined(messages.pop(), message)
        messages.append(message)
    return messages


def items_of(message: Message) -> list[dict[str, Any]]:
    """The items of a message, as the SDK keeps them; `messages_of` gives the message back."""
    if message.role == "tool":
        output = {"call_id": message.tool_call_id, "output": message.text}
        return [{"type": "function_call_output", **output}]
    if message.role != "assistant":
        named = {"id": message.id} if message.id else {}
        return [{"role": message.role, "content": message.text, **named}]
    return [*_thought(message), *_said(message), *_called(message)]


def item_id(message_id: str | None, prefix: str, index: int | None = None) -> str:
    """Id of an item of a message: that of the message, with its own prefix.

    Args:
        message_id: "msg_" and 32 hex digits, or whatever somebody else called it.
        prefix: "fc", "rs" or "msg".
        index: of several items of a kind.
    """
    ours = _OURS.fullmatch(message_id or "")
    name = ours.group(1) if ours else (message_id or FAKE_RESPONSES_ID)
    if not ours and prefix == "msg":
        return name
    return f"{prefix}_{name}" if index is None else f"{prefix}_{name}_{index}"


def message_id(item: Item) -> str | None:
    """The id of the message that an item is of, where it has one."""
    given = item.get("id")
    if not isinstance(given, str) or given == FAKE_RESPONSES_ID:
        return None
    ours = _OURS.fullmatch(given)
    return f"msg_{ours.group(1)}" if ours else given


def _thought(message: Message) -> list[dict[str, Any]]:
    if not message.reasoning:
        return []
    content = [{"type": "reasoning_text", "text": message.reasoning}]
    id = item_id(message.id, "rs")
    return [{"id": id, "summary": [], "type": "reasoning", "content": content}]


def _said(message: Message) -> list[dict[str, Any]]:
    if message.tool_calls and not message.text:
        return []
    content = [{"annotations": [], "text": message.text, "type": "output_text", "logprobs": []}]
    return [
        {
            "id": item_id(message.id, "msg"),
            "content": content,
            "role": "assistant",
            "status": "completed",
            "type": "message",
        }
    ]


def _called(message: Message) -> list[dict[str, Any]]:
    return [
        {
            "arguments": call.arguments,
            "call_id": call.id,
            "name": call.name,
            "type": "function_call",
            "id": item_id(message.id, "fc", index),
            "status": "completed",
        }
        for index, call in enumerate(message.tool_calls)
    ]


def _message(item: Item) -> Message:
    """One item as a message; `_goes_on` tells which of them belong together."""
    kind = item.get("type") or "message"
    if kind == "message":
        role = _string(item, "role")
        text = _text(item.get("content"), item)
        return Message(_ROLES.get(role, role), text, id=message_id(item))
    if kind == "function_call":
        call = ToolCall(*(_string(item, name) for name in ("call_id", "name", "arguments")))
        return Message("assistant", "", id=message_id(item), tool_calls=(call,))
    if kind == "function_call_output":
        text = _text(item.get("output"), item)
        return Message("tool", text, tool_call_id=_string(item, "call_id"))
    if kind == "reasoning":
        parts = item.get("content") or item.get("summary") or ()
        thought = "\n".join(str(part.get("text", "")) for part in parts)
        return Message("assistant", "", id=message_id(item), reasoning=thought)
    raise UserError(
        f"longmem reads messages, function calls and their outputs, and no item of type {kind!r}; "
        "leave it out of the input, for instance with RunConfig.call_model_input_filter"
    )


def _string(item: Item, name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        kind = item.get("type", "message")
        raise UserError(f"an item of type {kind!r} has a {name} of {value!r}; give it a string")
    return value


def _text(content: Any, item: Item) -> str:
    if isinstance(content, str):
        return content
    parts: Sequence[Any] = content if isinstance(content, Sequence) else [content]
    return "\n".join(_part_text(part, item) for part in parts)


def _part_text(part: Any, item: Item) -> str:
    if isinstance(part, str):
        return part
    kind = str(part.get("type")) if isinstance(part, Mapping) else type(part).__name__
    text = part.get(_TEXT_PARTS.get(kind)) if isinstance(part, Mapping) else None
    if not isinstance(text, str):
        where = item.get("role") or item.get("type")
        raise UserError(
            f"longmem reads text alone, and a {where} item holds a part of type {kind!r}; describe "
            "it in words instead"
        )
    return text


def _goes_on(before: Message, message: Message) -> bool:
    """Whether two items in a row are of one reply: thoughts, then text, then calls."""
    if before.role != "assistant" or message.role != "assistant":
        return False
    if message.tool_calls:
        return True
    begun = bool(before.text or before.tool_calls)
    return not begun and not (before.reasoning and message.reasoning)


def _joined(before: Message, message: Message) -> Message:
    return replace(
        before,
        text=before.text or message.text,
        id=before.id or message.id,
        tool_calls=before.tool_calls + message.tool_calls,
        reasoning=before.reasoning or message.reasoning,
    )
