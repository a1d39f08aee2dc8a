"""Items, the pieces of OpenAI's Responses dialect, and the messages of a dialogue they stand for.

An answer and its tool calls are one message, and one turn of a session, but several items: a
``message`` and a ``function_call`` for each call. Pure functions; nothing is stored here.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from longmem.adapters.server.errors import ApiError, unsupported
from longmem.dialogue import Message
from longmem.tools import ToolCall

Item = dict[str, Any]

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_LONGEST_ID = 256


def new_id(prefix: str) -> str:
    """``prefix_`` and 192 random bits: it names a thing and cannot be guessed."""
    return f"{prefix}_{secrets.token_hex(24)}"


def read_items(given: str | Sequence[Any], where: str = "input") -> list[Message]:
    """Messages that items stand for, each with an id: the item's own or a new one.

    Reasoning items are passed over. A function call joins the assistant's message right before it.

    Args:
        given: the items, or the text of one user message.
        where: the parameter they came in, for messages.

    Raises:
        ApiError: 400, with the place of the item that is refused.
    """
    if isinstance(given, str):
        return [Message("user", given, id=new_id("msg"))]
    places = ((item, f"{where}[{i}]") for i, item in enumerate(given))
    return joined(message for item, place in places for message in _read_item(item, place))


def joined(messages: Iterable[Message]) -> list[Message]:
    """The messages, with function calls as parts of the assistant's message right before them."""
    made: list[Message] = []
    for message in messages:
        if message.tool_calls and not message.text and made and made[-1].role == "assistant":
            made[-1] = replace(made[-1], tool_calls=made[-1].tool_calls + message.tool_calls)
        else:
            made.append(message)
    return made


def without(message: Message, item_id: str) -> Message | None:
    """What is left of a message when one of its items goes; None: nothing."""
    kept = [item for item in message_items(message) if item["id"] != item_id]
    calls = {item["call_id"] for item in kept if item["type"] == "function_call"}
    if not kept or message.role != "assistant":
        return None if not kept else message
    text = message.text if kept[0]["type"] == "message" else ""
    return replace(
        message, text=text, tool_calls=tuple(c for c in message.tool_calls if c.id in calls)
    )


def message_items(message: Message, *, status: str = "completed") -> list[Item]:
    """The items of one message, in order.

    Args:
        message: with an id.
        status: "completed", "incomplete" or "in_progress", of an assistant's items.
    """
    if message.role == "tool":
        return [_output_item(message)]
    if message.role != "assistant":
        return [_text_item(message, "completed", [{"type": "input_text", "text": message.text}])]
    items = []
    if message.text or not message.tool_calls:
        items.append(_text_item(message, status, [output_text(message.text)]))
    return items + [call_item(call, status) for call in message.tool_calls]


def output_text(text: str) -> Item:
    """The content part that holds a reply's text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(call: ToolCall, status: str = "completed") -> Item:
    """The item of one tool call; its id follows from the call's, so that it stays the same."""
    return {
        "id": f"fc_{_digest(call.id)}",
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def fallback_id(*parts: object) -> str:
    """An id for a message that came without one, from what stays the same about it."""
    return f"msg_{_digest(*parts)}"


def _text_item(message: Message, status: str, content: list[Item]) -> Item:
    return {
        "id": message.id,
        "type": "message",
        "status": status,
        "role": message.role,
        "content": content,
    }


def _output_item(message: Message) -> Item:
    item = {
        "id": message.id,
        "type": "function_call_output",
        "status": "completed",
        "call_id": message.tool_call_id,
        "output": message.text,
    }
    return item | ({"name": message.name} if message.name else {})


def _read_item(item: Any, where: str) -> Iterator[Message]:
    if not isinstance(item, Mapping):
        raise _refused(where, "an item is an object with a type, or a role and content")
    kind = item.get("type", "message")
    if kind == "message":
        yield _read_message(item, where)
    elif kind == "function_call":
        yield _read_call(item, where)
    elif kind == "function_call_output":
        yield _read_output(item, where)
    elif kind != "reasoning":
        raise unsupported(
            f"{where}.type",
            f"{where} is of type {_shown(kind)}; longmem reads message, function_call and "
            "function_call_output items, and passes over reasoning",
        )


def _read_message(item: Mapping[str, Any], where: str) -> Message:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _refused(f"{where}.role", f"it is {_shown(role)}; choose one of {', '.join(_ROLES)}")
    text = _read_text(item.get("content"), f"{where}.content")
    return Message(_ROLES[role], text, id=_id(item, "msg", where))


def _read_call(item: Mapping[str, Any], where: str) -> Message:
    call = ToolCall(
        id=_string(item, "call_id", where),
        name=_string(item, "name", where),
        arguments=_string(item, "arguments", where, empty=True),
    )
    return Message("assistant", "", id=new_id("msg"), tool_calls=(call,))


def _read_output(item: Mapping[str, Any], where: str) -> Message:
    return Message(
        "tool",
        _read_text(item.get("output"), f"{where}.output"),
        id=_id(item, "fco", where),
        tool_call_id=_string(item, "call_id", where),
        name=_string(item, "name", where) if item.get("name") is not None else None,
    )


def _read_text(content: Any, where: str) -> str:
    """A string, or a list of text parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise _refused(where, "give a string or a list of text parts")
    return "".join(_read_part(part, f"{where}[{i}]") for i, part in enumerate(content))


def _read_part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    field = _TEXTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise unsupported(
            f"{where}.type",
            f"{where} is of type {_shown(kind)}; longmem reads text parts alone: input_text and "
            "output_text",
        )
    return _string(part, field, where, empty=True)


def _string(item: Mapping[str, Any], name: str, where: str, *, empty: bool = False) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not (value or empty):
        raise _refused(f"{where}.{name}", f"it is {_shown(value)}; give a string")
    return value


def _id(item: Mapping[str, Any], prefix: str, where: str) -> str:
    if item.get("id") is None:
        return new_id(prefix)
    id = _string(item, "id", where)
    if len(id) > _LONGEST_ID or not id.isprintable():
        raise _refused(f"{where}.id", f"an id has at most {_LONGEST_ID} visible characters")
    return id


def _refused(where: str, why: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{where}: {why}", where)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _digest(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:48]
