"""See what a chat template writes between turns, by rendering small conversations with it.

Turns hold sentinel words; what stands between two sentinels is the gap between two roles. The turns
that count are *past* turns: some templates (Qwen3) render the last reply of a conversation
differently from the same reply once a user has spoken again, and the model only ever reads the
latter. So gaps come from conversations that end with no reply.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError

from longmem.tools.grammar import ARGUMENT_SLOT, ID_SLOT, NAME_SLOT

Message = dict[str, Any]
Render = Callable[[list[Message], bool], str]
"""(messages, add_generation_prompt) -> text, by the template itself."""
Pair = tuple[str | None, str]
"""(role of the previous turn, or None at the start; role of the next, REPLY or END)."""

REPLY, END = "<reply>", "<end>"
LETTERS = {
    "S": "system",
    "U": "user",
    "A": "assistant",
    "T": "tool",
    "C": "assistant",
    "R": "tool",
}
"""C is an assistant's turn that calls a tool, R a tool's turn that names the call."""
NEEDED = {
    "user": ("U", "UAU", "UAUAU"),
    "assistant": ("U", "UAU", "UAUAU"),
    "system": ("SU", "SUAU"),
    "tool": ("UAT", "UATAU"),
}
"""Conversations a template must render for each role to be used at all, as `messages_of` codes."""
OPTIONAL = ("UUAU", "UAAU", "UASU", "USU", "AU", "SAU", "UATTAU", "UATU")
UNFINISHED = ("UAT",)
"""Behind a tool's result some templates still write the calling turn as they write a last reply,
reasoning and all: of these conversations only the last turn counts."""
LAST_TURN = ("UA", "UAUA", "S", "SUA", *NEEDED["user"], "UAT")

REWRITES: dict[str, Callable[[str], str]] = {
    "as is": lambda text: text,
    "strip": str.strip,
    "strip left": str.lstrip,
    "strip right": str.rstrip,
    "strip newlines": lambda text: text.strip("\n"),
    "strip newlines left": lambda text: text.lstrip("\n"),
    "strip newlines right": lambda text: text.rstrip("\n"),
    "json": lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
}
"""What templates do to the text of a turn, by name."""

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What templates raise on a conversation they do not take."""


class RefusedError(Exception):
    """The template does not render a probe conversation turn by turn."""


@dataclass
class Gaps:
    """What a template writes around turns.

    Attributes:
        between: text between two turns, or between the last turn and a reply.
        source: conversation and turn index where each pair's second turn was first seen.
        ends: texts that end a conversation without a request for a reply, by the last turn's role.
        rendered: conversations the template takes.
        failures: reason by conversation, for those it does not.
    """

    between: dict[Pair, str] = field(default_factory=dict)
    source: dict[Pair, tuple[str, int]] = field(default_factory=dict)
    ends: dict[str, set[str]] = field(default_factory=dict)
    rendered: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def add(self, code: str, found: Sequence[tuple[Pair, str]]) -> None:
        """Take over a conversation's gaps, or its last ones; all that are given or none."""
        for pair, gap in found:
            known = self.between.get(pair, gap)
            if known != gap:
                raise RefusedError(
                    f"it writes {gap!r} between {pair[0]} and {pair[1]} in the conversation "
                    f"{code}, but {known!r} elsewhere"
                )
        first = len(code) + 1 - len(found)
        for index, (pair, gap) in enumerate(found, first):
            self.between[pair] = gap
            self.source.setdefault(pair, (code, index))
        self.rendered.append(code)

    def refuse(self, role: str) -> None:
        """Forget every gap beside a turn of `role`."""
        for pair in [pair for pair in self.between if role in pair]:
            del self.between[pair]

    def after(self, role: str) -> dict[str, str]:
        """Text behind a turn of `role`, by what comes next, in orders that every chat has.

        Tool results count in a row, too: some templates put them into one block.
        """
        codes = [*(code for group in NEEDED.values() for code in group), "UATTAU"]
        main = {pair for code in codes for pair in pairs_of(code)}
        return {
            pair[1]: gap for pair, gap in self.between.items() if pair[0] == role and pair in main
        }


def messages_of(code: str, texts: Sequence[str]) -> list[Message]:
    """A conversation from a code such as "SUAU", one text per letter."""
    return [_message(letter, text) for letter, text in zip(code, texts, strict=True)]


def call_message(content: str, calls: Sequence[tuple[str, str, Any]]) -> Message:
    """An assistant's turn that calls tools: (id, name, arguments) of each."""
    functions = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in calls
    ]
    return {"role": "assistant", "content": content, "tool_calls": functions}


def _message(letter: str, text: str) -> Message:
    if letter == "C":
        return call_message("", [(ID_SLOT, NAME_SLOT, {ARGUMENT_SLOT: text})])
    message = {"role": LETTERS[letter], "content": text}
    return message | ({"tool_call_id": ID_SLOT, "name": NAME_SLOT} if letter == "R" else {})


def pairs_of(code: str, last: str = REPLY) -> list[Pair]:
    """The neighbours in a conversation, from (None, first role) to (last role, `last`)."""
    roles = [LETTERS[letter] for letter in code]
    return list(zip([None, *roles], [*roles, last], strict=True))


def collect_gaps(render: Render) -> Gaps:
    """Render every probe conversation and note what stands around its turns."""
    gaps = Gaps()
    codes = dict.fromkeys([*(code for group in NEEDED.values() for code in group), *OPTIONAL])
    for code in codes:
        try:
            found = gaps_of(render, code, reply=True)
            if gaps_of(render, code, reply=False)[:-1] != found[:-1]:
                raise RefusedError("it writes earlier turns differently when asked for a reply")
            gaps.add(code, found[-2:] if code in UNFINISHED else found)
        except (RefusedError, *TEMPLATE_ERRORS) as error:
            gaps.failures[code] = str(error) or type(error).__name__
    for role, end in _ends(render):
        gaps.ends.setdefault(role, set()).add(end)
    return gaps


def first_prefix(render: Render, role: str) -> str:
    """What the template puts before everything when the first turn is `role`, rendered anew."""
    code = {"system": "SU", "user": "U", "assistant": "AU"}[role]
    return gaps_of(render, code, reply=False)[0][1]


def rewrite_of(render: Render, code: str, index: int) -> str | None:
    """Which of `REWRITES` the template applies to turn `index` of a conversation."""
    words = sentinels(code)
    plain = render(messages_of(code, words), True)
    padded = f"\n \n  {words[index]}\t \n  \n"
    texts = [padded if i == index else word for i, word in enumerate(words)]
    rendered = render(messages_of(code, texts), True)
    for name, rewrite in REWRITES.items():
        if plain.replace(words[index], rewrite(padded)) == rendered:
            return name
    return None


def sentinels(code: str) -> list[str]:
    return [f"qzx{index}xzq" for index in range(len(code))]


def _ends(render: Render) -> Iterator[tuple[str, str]]:
    for code in LAST_TURN:
        try:
            gap = gaps_of(render, code, reply=False)[-1][1]
        except (RefusedError, *TEMPLATE_ERRORS):
            continue
        yield LETTERS[code[-1]], gap


def gaps_of(render: Render, code: str, *, reply: bool) -> list[tuple[Pair, str]]:
    words = sentinels(code)
    rest, parts = render(messages_of(code, words), reply), []
    for letter, word in zip(code, words, strict=True):
        part, found, rest = rest.partition(word)
        if not found or word in rest:
            raise RefusedError(f"it does not write each {LETTERS[letter]} turn once and in order")
        parts.append(part)
    return list(zip(pairs_of(code, REPLY if reply else END), [*parts, rest], strict=True))
