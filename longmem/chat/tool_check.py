"""Prove that turns with tools, rendered one by one, add up to what the chat template renders.

As `longmem.chat.check`: ids against ids, with calls and results that hold everything JSON and
control tokens could trip over. Where the tools are told of is compared in conversations up to the
second user turn: some templates (Mistral's) move them behind the last one, where a memory that
reads each turn once cannot follow; they stay before the first, which is always attended.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from longmem.chat.check import TEXTS, first_difference
from longmem.chat.encode import TurnEncoder
from longmem.chat.gaps import LETTERS, TEMPLATE_ERRORS, Message, call_message
from longmem.chat.native_tools import NativeTools
from longmem.chat.template import ChatTemplate
from longmem.errors import InputError
from longmem.tools.calls import ToolCall
from longmem.tools.definitions import tool_definitions

ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"place": "Zürich 漢字", "days": [1, 2.5, None, {"deep": {"er": True}}]},
    {},
    {"q": 'a "b"\\ }]'},
)
TOOLS = tool_definitions(
    [
        {
            "name": "weather",
            "description": "The weather\nof a place: 漢字.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "where"}},
                "required": ["place"],
            },
        },
        {"name": "clock", "description": "The time."},
    ]
)
UNFINISHED_CALL = "CR"
ALONE = ("UCR", "UCRAU", "UCRAUCRAU")
WITH_TOOLS = ("U", "UCR")


class Turns(Protocol):
    """What is to be proven."""

    def turn_ids(
        self,
        role: str,
        text: str,
        *,
        previous: str | None,
        extra: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of one whole turn."""

    def assistant_text(self, content: str, calls: Sequence[ToolCall]) -> str:
        """The text of a turn with calls."""

    def reply_header_ids(self, previous: str = "user") -> list[int]:
        """Ids of the generation prompt."""


def tools_disagree(
    turns: Turns, template: ChatTemplate, encoder: TurnEncoder, native: NativeTools
) -> str | None:
    """A sentence that names a difference, or None if there is none."""
    system = "system" not in native.pieces.refused
    cases = [(code, False) for code in ALONE] + [(code, True) for code in WITH_TOOLS]
    cases += [("S" + code, with_tools) for code, with_tools in cases if system]
    for code, with_tools in cases:
        try:
            reason = _compare(code, with_tools, turns, template, encoder)
        except (InputError, *TEMPLATE_ERRORS) as error:
            reason = f"in the conversation {code}: {error}"
        if reason is not None:
            return reason
    return None


def _compare(
    code: str, with_tools: bool, turns: Turns, template: ChatTemplate, encoder: TurnEncoder
) -> str | None:
    tools = TOOLS if with_tools else None
    for shift in range(len(ARGUMENTS)):
        messages = _conversation(code, shift)
        expected = encoder.encode(template.render(messages, True, tools))
        each = list(_one_by_one(turns, messages, tools))
        header = turns.reply_header_ids(messages[-1]["role"])
        got = [index for ids in each for index in ids] + header
        if code.endswith(UNFINISHED_CALL):  # see `longmem.chat.gaps.UNFINISHED`
            got = each[-1] + header
            expected = expected[-len(got) :]
        if expected != got:
            return first_difference(code, expected, got, template.decode)
    return None


def _conversation(code: str, shift: int) -> list[Message]:
    messages = []
    for i, letter in enumerate(code, shift):
        arguments, text = ARGUMENTS[i % len(ARGUMENTS)], TEXTS[i % len(TEXTS)]
        id, name = f"callNr{shift:03}", f"tool_{shift}"
        if letter == "C":
            messages.append(call_message("Let me see." * (i % 2), [(id, name, arguments)]))
        elif letter == "R":
            message = {"role": "tool", "content": text, "tool_call_id": id, "name": name}
            messages.append(message)
        else:
            messages.append({"role": LETTERS[letter], "content": text})
    return messages


def _one_by_one(
    turns: Turns, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None
) -> Iterator[list[int]]:
    previous = None
    if tools and messages[0]["role"] != "system":
        yield turns.turn_ids("system", "", previous=None, tools=tools)
        previous = "system"
    for message in messages:
        role, text = message["role"], message["content"]
        if "tool_calls" in message:
            text = turns.assistant_text(text, [_call(call) for call in message["tool_calls"]])
        first = tools if role == "system" else None
        yield turns.turn_ids(role, text, previous=previous, extra=message, tools=first)
        previous = role


def _call(call: Mapping[str, Any]) -> ToolCall:
    function = call["function"]
    return ToolCall(call["id"], function["name"], json.dumps(function["arguments"]))
