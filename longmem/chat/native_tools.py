"""Tools as the model's own chat template tells of them, and calls as it writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from longmem.chat.encode import TurnEncoder
from longmem.chat.gaps import (
    REWRITES,
    TEMPLATE_ERRORS,
    Message,
    RefusedError,
    call_message,
    messages_of,
    sentinels,
)
from longmem.chat.pieces import Opening, Pieces
from longmem.chat.template import ChatTemplate
from longmem.chat.tool_gaps import ToolPieces, call_between, derive_tool_pieces
from longmem.errors import InputError
from longmem.tools.calls import ToolCall, arguments_text, load_json, short_id
from longmem.tools.definitions import tool_definitions
from longmem.tools.formats import FORMATS
from longmem.tools.grammar import ARGUMENT_SLOT, ID_SLOT, NAME_SLOT
from longmem.tools.splitter import parse_tool_calls

_SEPARATORS = {"hermes": "\n", "llama3": "; ", "mistral": ""}
"""Between calls, where the template itself writes no more than one."""
_PROBE = [{"name": "probe", "description": "Does it."}]


class NativeTools:
    """The tools of one chat template. Make it with `native_tools`.

    Attributes:
        pieces: of the format, with turns of tools.
        call: the text of one call, with slots (`longmem.tools.grammar`).
        format: the name of that format.
    """

    native = True

    def __init__(self, template: ChatTemplate, tools: ToolPieces, format: str) -> None:
        self._template, self._bare = template, tools.bare
        self.pieces, self.call, self.format = tools.pieces, tools.call, format

    def system_turn(
        self, text: str, tools: Sequence[Mapping[str, Any]], encoder: TurnEncoder
    ) -> list[int]:
        """Ids of a first turn that tells of `tools`.

        Args:
            text: the system prompt, "" for none.

        Raises:
            InputError: something in `tools` is no definition, or the template cannot write it.
        """
        definitions = tool_definitions(tools)
        spelled = text + json.dumps(definitions, ensure_ascii=False)
        mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in spelled)
        try:
            prefix, suffix = self.around(bool(text), _marked(definitions, encoder, mark))
        except (RefusedError, *TEMPLATE_ERRORS) as error:
            raise InputError(
                f"the model's chat template cannot tell of these tools: {error}; give each a "
                "description, and parameters that are a JSON schema of an object"
            ) from error
        if text:
            opening = self.pieces.openings[None, "system"]
            text = encoder.mark(REWRITES[opening.rewrite](text), mark)
        return encoder.encode_marked(prefix + text + suffix, mark)

    def opening(self, text: str, previous: str | None, plain: Opening) -> Opening:
        """What stands before an assistant's turn, given what stands before others."""
        if self._bare and previous and text.startswith(FORMATS[self.format].marker):
            return Opening(self.pieces.headers[previous])
        return plain

    def call_text(self, content: str, calls: Sequence[ToolCall]) -> str:
        """What the template writes for a turn with calls.

        Raises:
            InputError: it can write no such call.
        """
        try:
            return self._written(content, calls)
        except (RefusedError, *TEMPLATE_ERRORS) as error:
            if len(calls) == 1:
                raise InputError(
                    f"the model's chat template cannot write a call of {calls[0].name!r}: {error}"
                ) from error
        parts = [self.call_text("" if i else content, [call]) for i, call in enumerate(calls)]
        return _SEPARATORS[self.format].join(parts)

    def _written(self, content: str, calls: Sequence[ToolCall]) -> str:
        triples = [(short_id(call.id), call.name, _arguments(call)) for call in calls]
        user, result = (sentinels("UCR")[index] for index in (0, 2))
        messages = messages_of("U", [user])
        messages.append(call_message(content, triples))
        answers = [_result("ok" if i else result, id) for i, (id, _, _) in enumerate(triples)]
        messages += answers
        messages += messages_of("AU", ["ok", "ok"])
        gap = self._template.render(messages, False).partition(user)[2].rpartition(result)[0]
        return call_between(gap, self.pieces, answers[0])[0]

    def around(self, has_text: bool, tools: list[dict[str, Any]]) -> tuple[str, str]:
        """What the template writes before and behind the text of its first turn."""
        code = "SU" if has_text else "U"
        words = sentinels(code)
        rest, parts = self._template.render(messages_of(code, words), False, tools), []
        for word in words:
            part, found, rest = rest.partition(word)
            if not found or word in rest:
                raise RefusedError("with tools, it does not write each turn once and in order")
            parts.append(part)
        user = self.pieces.openings["system", "user"].prefix
        if not parts[-1].endswith(user):
            raise RefusedError("it tells of tools inside the user's turn")
        parts[-1] = parts[-1][: len(parts[-1]) - len(user)]
        return (parts[0], parts[1]) if has_text else (parts[0], "")


def native_tools(template: ChatTemplate, encoder: TurnEncoder, pieces: Pieces) -> NativeTools:
    """The tools of a template that takes them, and whose calls longmem can read.

    Raises:
        RefusedError: says why it is none.
    """
    if "tools" not in template.source:
        raise RefusedError("it takes no tools")
    found = derive_tool_pieces(template.render, pieces, encoder.added, encoder.stable)
    format = next((name for name in FORMATS if _reads(name, found.call)), None)
    if format is None:
        raise RefusedError(
            f"it writes calls of tools in a way longmem does not read: {found.call!r}"
        )
    tools = NativeTools(template, found, format)
    if ("system", "user") in pieces.openings:
        tools.around(True, tool_definitions(_PROBE))
    else:
        tools.pieces = _with_first_turn(tools, encoder)
    tools.around(False, tool_definitions(_PROBE))
    return tools


def _with_first_turn(tools: NativeTools, encoder: TurnEncoder) -> Pieces:
    """For templates without system prompts: a first turn that is nothing but tools."""
    pieces = tools.pieces
    openings = pieces.openings | {("system", "user"): pieces.openings["assistant", "user"]}
    tools.pieces = replace(pieces, openings=openings)
    prefix, _ = tools.around(False, tool_definitions(_PROBE))
    return replace(tools.pieces, closings=pieces.closings | {"system": encoder.context(prefix)})


def _reads(format: str, call: str) -> bool:
    """Whether the reader of a format gets the call back that a template wrote."""
    content, calls = parse_tool_calls(call, format)
    if content or [one.name for one in calls] != [NAME_SLOT]:
        return False
    return ARGUMENT_SLOT in calls[0].arguments and (ID_SLOT not in call or calls[0].id == ID_SLOT)


def _arguments(call: ToolCall) -> Any:
    text = arguments_text(call.arguments)
    if text is None:
        raise InputError(
            f"the arguments of the call of {call.name!r} are no JSON object: {call.arguments!r}"
        )
    return load_json(text)


def _result(text: str, id: str) -> Message:
    return {"role": "tool", "content": text, "tool_call_id": id, "name": "tool"}


def _marked(value: Any, encoder: TurnEncoder, mark: str) -> Any:
    """A JSON value with every control token spelled in it marked."""
    if isinstance(value, str):
        return encoder.mark(value, mark)
    if isinstance(value, Mapping):
        return {encoder.mark(k, mark): _marked(v, encoder, mark) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_marked(one, encoder, mark) for one in value]
    return value
