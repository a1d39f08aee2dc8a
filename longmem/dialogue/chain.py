"""Hashes over messages: two conversations agree up to a message if their chains do there.

Every committed turn carries its chain value, and the number of messages it covers, so that a whole
list of messages is compared with a session of any length by looking at few of its turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from longmem.dialogue.message import Message
from longmem.tools import ToolCall
from longmem.types import Turn

START = bytes(16)
"""The chain value of no message at all."""
KEY = "chain"
"""Under which a turn's `extra` holds ``[number of messages, chain value in hex]``."""


def digest(message: Message) -> bytes:
    """16 bytes that tell messages apart: role, text, and what tools are called with.

    Ids are left out, as are reasoning, white space around an assistant's text, and how the JSON of
    a tool call is laid out: callers change them when they hand a reply back.
    """
    assistant = message.role == "assistant"
    text = message.text.strip() if assistant else message.text
    parts = [message.role, text, *([_call(call) for call in message.tool_calls])]
    return _hash(json.dumps(parts, ensure_ascii=True).encode())


def chained(previous: bytes, message: Message) -> bytes:
    """The chain value of a list of messages that goes on with `message`."""
    return _hash(previous + digest(message))


def chain(messages: Sequence[Message], start: bytes = START) -> list[bytes]:
    """Chain values of the first 0, 1, ... n messages behind `start`."""
    values = [start]
    for message in messages:
        values.append(chained(values[-1], message))
    return values


def link(count: int, value: bytes) -> list[Any]:
    """What a turn keeps: it is message number `count`, and `value` covers all up to it."""
    return [count, value.hex()]


def linked(turn: Turn, count: int) -> bytes | None:
    """The chain value a turn carries, if it is still message number `count`.

    It is not once an earlier one was forgotten: its value then covers what is no longer there.
    """
    kept = turn.extra.get(KEY)
    if not isinstance(kept, list) or len(kept) != 2 or kept[0] != count:
        return None
    return bytes.fromhex(kept[1])


def _call(call: ToolCall) -> list[str]:
    try:
        arguments = json.dumps(json.loads(call.arguments or "{}"), sort_keys=True)
    except (ValueError, RecursionError):
        arguments = call.arguments
    return [call.name, arguments]


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:16]
