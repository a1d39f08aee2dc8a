"""Prove that turns rendered one by one add up to what the chat template renders as a whole.

Run once, when a `longmem.chat.format.ChatFormat` is made: ids against ids, on conversations of
every order of roles the template takes, with white space around texts, accents, emoji and code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from longmem.chat.encode import TurnEncoder
from longmem.chat.gaps import LETTERS, NEEDED, UNFINISHED, Message, messages_of
from longmem.chat.template import ChatTemplate
from longmem.errors import ChatFormatError

TEXTS = (
    "Hello, my code is 48213.",
    "  two spaces before, one after ",
    "\nnew lines\n\naround\n",
    "naïve Ünïcödé 漢字 🦉👩‍🚀",
    '\tdef f(x):\n    return {"a": [x, 1.5]}  # tabs & <b>tags</b>\n\n',
    "ok",
    "What was it?",
)


class Turns(Protocol):
    """What is to be proven: a renderer of single turns."""

    def turn_ids(
        self,
        role: str,
        text: str,
        *,
        previous: str | None,
        extra: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of one whole turn."""

    def reply_header_ids(self, previous: str = "user") -> list[int]:
        """Ids of the generation prompt."""


def disagreements(
    turns: Turns, template: ChatTemplate, encoder: TurnEncoder, codes: Sequence[str]
) -> dict[str, str]:
    """For each conversation code that does not add up, a sentence that names the difference.

    Each code is tried with a request for a reply behind it, the main ones also with a reply as
    their last turn.
    """
    main = {code for group in NEEDED.values() for code in group}
    found = {}
    for code in codes:
        try:
            reason = _compare(code, turns, template, encoder)
            if reason is None and code in main:
                reason = _compare_last_reply(code + "A", turns, template, encoder)
        except ChatFormatError as error:
            reason = str(error)
        if reason is not None:
            found[code] = reason
    return found


def _compare(code: str, turns: Turns, template: ChatTemplate, encoder: TurnEncoder) -> str | None:
    for messages in _conversations(code):
        expected = encoder.encode(template.render(messages, True))
        got = _one_by_one(turns, messages, only_last=code in UNFINISHED)
        got += turns.reply_header_ids(messages[-1]["role"])
        if code in UNFINISHED:
            expected = expected[-len(got) :]
        if expected != got:
            return first_difference(code, expected, got, template.decode)
    return None


def _compare_last_reply(
    code: str, turns: Turns, template: ChatTemplate, encoder: TurnEncoder
) -> str | None:
    """As `_compare`, for a reply that is the last turn.

    A template that writes its last reply in a way it takes back as soon as a user speaks (Qwen3's
    empty think block) is not at fault: memory holds the turn as it is read from then on. Phi-3 and
    others end every conversation without a request for a reply by an end token of its own. And the
    template may write the end of a reply together with the next turn, or longmem may read it then.
    """
    for messages in _conversations(code):
        text = template.render(messages, False)
        later = template.render([*messages, {"role": "user", "content": "next"}], False)
        if not later.startswith(text):
            return None
        expected, got = encoder.encode(text), _one_by_one(turns, messages)
        shorter = min(len(expected), len(got))
        if expected[:shorter] != got[:shorter]:
            return first_difference(code, expected, got, template.decode)
    return None


def _one_by_one(turns: Turns, messages: list[Message], only_last: bool = False) -> list[int]:
    ids: list[int] = []
    previous = None
    for message in messages:
        if only_last:
            ids.clear()
        ids += turns.turn_ids(message["role"], message["content"], previous=previous)
        previous = message["role"]
    return ids


def _conversations(code: str) -> Iterator[list[Message]]:
    for shift in range(0, len(TEXTS), 1 if len(code) < 4 else 3):
        yield messages_of(code, [TEXTS[(shift + i) % len(TEXTS)] for i in range(len(code))])


def first_difference(
    code: str, expected: list[int], got: list[int], decode: Callable[[Sequence[int]], str]
) -> str:
    """A sentence about where two lists of ids part."""
    pairs = zip(expected, got, strict=False)
    shorter = min(len(expected), len(got))
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
    roles = ", ".join(LETTERS[letter] for letter in code)
    return (
        f"in a conversation of {roles}, from token {at} on, it writes "
        f"{decode(expected[at : at + 8])!r} where its turns one by one give "
        f"{decode(got[at : at + 8])!r}"
    )
