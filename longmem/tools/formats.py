"""How models write tool calls: one reader per format.

A reader is asked at a marker, or at the start of the reply, and either reads calls from there or
says that there are none: what is malformed stays text. JSON is decoded, never matched by patterns,
so that braces and markers inside its strings mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from longmem.tools.calls import ToolCall, as_call, decode_json, new_id

Read = tuple[tuple[ToolCall, ...], int]
"""Calls, and where the text goes on behind them."""


@dataclass(frozen=True)
class CallFormat:
    """One way to write tool calls.

    Args:
        name: "hermes", "llama3" or "mistral".
        marker: text, or a control token, in front of a call.
        read: calls from the marker at an index on; None if they are malformed.
        opening: a reply that starts with this may be calls without a marker.
        read_bare: calls of a reply without a marker, from an index on.
        tokens: all markup that may be control tokens in a model's vocabulary.
    """

    name: str
    marker: str
    read: Callable[[str, int], Read | None]
    opening: str = ""
    read_bare: Callable[[str, int], Read | None] | None = None
    tokens: tuple[str, ...] = ()


def _hermes(text: str, at: int) -> Read | None:
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; the last may lack its end."""
    found = _json_call(text, at + len("<tool_call>"))
    if found is None:
        return None
    call, end = found
    rest = _skip(text, end)
    if text.startswith("</tool_call>", rest):
        return (call,), rest + len("</tool_call>")
    closed = rest == len(text) or text.startswith("<tool_call>", rest)
    return ((call,), rest) if closed else None


def _llama3_tagged(text: str, at: int) -> Read | None:
    return _llama3(text, at + len("<|python_tag|>"))


def _llama3(text: str, at: int) -> Read | None:
    """``{"name": ..., "parameters": {...}}``, several with ";" between, up to the reply's end."""
    calls: list[ToolCall] = []
    while found := _json_call(text, at, strict=True):
        call, end = found
        calls.append(call)
        at = _skip(text, end)
        if at == len(text):
            return tuple(calls), at
        if text.startswith(";", at):
            at = _skip(text, at + 1)
        if text.startswith("<|python_tag|>", at):
            at += len("<|python_tag|>")
    return None


_MISTRAL_NAME = re.compile(
    r"([\w.:/-]{1,256})\s*(?:\[CALL_ID\]([A-Za-z0-9]+))?(?:\[ARGS\]\s*(?=\{|null)|(?=\{))"
)


def _mistral(text: str, at: int) -> Read | None:
    """``[TOOL_CALLS][{...}, ...]``, or ``[TOOL_CALLS]name[CALL_ID]id[ARGS]{...}``, id and [ARGS]
    perhaps left out."""
    start = _skip(text, at + len("[TOOL_CALLS]"))
    return _mistral_list(text, start) or _mistral_named(text, start)


def _mistral_list(text: str, at: int) -> Read | None:
    try:
        value, end = decode_json(text, at)
    except ValueError:
        return None
    each = [as_call(one, short=True) for one in (value if isinstance(value, list) else [value])]
    calls = tuple(call for call in each if call is not None)
    return (calls, end) if calls and len(calls) == len(each) else None


def _mistral_named(text: str, at: int) -> Read | None:
    calls: list[ToolCall] = []
    end = at
    while match := _MISTRAL_NAME.match(text, at):
        try:
            value, end = decode_json(text, match.end())
        except ValueError:
            break
        call = as_call({"name": match[1], "arguments": value})
        if call is None:
            break
        calls.append(ToolCall(match[2] or new_id(short=True), call.name, call.arguments))
        at = _skip(text, end)
        if not text.startswith(",", at):
            break
        at = _skip(text, at + 1)
    return (tuple(calls), end) if calls else None


def _json_call(text: str, at: int, strict: bool = False) -> tuple[ToolCall, int] | None:
    try:
        value, end = decode_json(text, at)
    except ValueError:
        return None
    call = as_call(value, strict=strict)
    return None if call is None else (call, end)


def _skip(text: str, at: int) -> int:
    """The next index that is no white space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


FORMATS = {
    each.name: each
    for each in (
        CallFormat(
            "mistral", "[TOOL_CALLS]", _mistral, tokens=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
        ),
        CallFormat("hermes", "<tool_call>", _hermes, tokens=("<tool_call>", "</tool_call>")),
        CallFormat(
            "llama3",
            "<|python_tag|>",
            _llama3_tagged,
            opening="{",
            read_bare=_llama3,
            tokens=("<|python_tag|>",),
        ),
    )
}
"""By name, the most telling marker first."""
