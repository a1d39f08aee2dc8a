"""Turn sampled token ids into text while they arrive.

Three stages, each holding back what it cannot decide yet: bytes that are not a whole character
(`IncrementalDecoder`), reasoning (`longmem.chat.reasoning`), and what may be the beginning of a stop
string. The work per token does not depend on the length of the reply.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from longmem.chat.reasoning import THINK_TAGS, ReasoningFilter, Tags
from longmem.lookahead import held_back

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are not (yet) a character."""


class IncrementalDecoder:
    """Token ids to text, one at a time, never splitting a character.

    A short window of tokens is decoded with and without the new one, and the difference is the new
    text; the window slides on at character boundaries. It begins with the tokens shown last,
    because some decoders treat the first token of a string differently.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    PENDING = 16
    """Tokens without a character boundary after which one is forced: no character is that long."""
    CHARACTER = 4
    """Most tokens in one character, at one byte each."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0  # tokens of the window whose text was given out
        self._head = ""  # their text

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is incomplete."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        if not text.endswith(REPLACEMENT):
            return self._show(len(self._ids), text)
        if len(self._ids) - self._shown <= self.PENDING:
            return ""
        cut = self._character_boundary(text)
        return self._show(cut, self._decode(self._ids[:cut]))

    def finish(self) -> str:
        """What is left, incomplete characters as U+FFFD."""
        if self._shown == len(self._ids):
            return ""
        return self._show(len(self._ids), self._decode(self._ids))

    def _show(self, count: int, text: str) -> str:
        """Give out `text`, the window's first `count` tokens; slide it to the newest of them."""
        piece = text[len(self._head) :]
        self._ids, self._shown = self._ids[self._shown :], count - self._shown
        self._head = self._decode(self._ids[: self._shown])
        return piece

    def _character_boundary(self, text: str) -> int:
        """A cut in a run of broken bytes that splits no character, newest tokens left alone."""
        last = len(self._ids) - self.CHARACTER
        for cut in range(last, last - self.CHARACTER, -1):
            if self._decode(self._ids[:cut]) + self._decode(self._ids[cut:]) == text:
                return cut
        return last

    def _decode(self, ids: Sequence[int]) -> str:
        decoded = self._tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(decoded)


class TextStream:
    """A reply's text, from its token ids, as they are sampled.

    The pieces that `push` and `finish` return, put together, are `text`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        stop_strings: the text ends before the one that is complete first, outside reasoning.
        skip_ids: ids that are no text, besides the tokenizer's special tokens (but for `tags` and
            `markers`).
        tags: what encloses reasoning; None if nothing does.
        opened: the reply begins inside reasoning (`ChatFormat.opens_reasoning`).
        lead: white space that is not the reply's, if it begins with it (`ChatFormat.reply_lead`).
        markers: special tokens that are text all the same (`ChatFormat.tool_markers`).
    """

    def __init__(
        self,
        tokenizer: Any,
        stop_strings: Sequence[str] = (),
        *,
        skip_ids: Iterable[int] = (),
        tags: Tags | None = THINK_TAGS,
        opened: bool = False,
        lead: str = "",
        markers: Iterable[str] = (),
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._skip = frozenset([*skip_ids, *_special_ids(tokenizer, {*(tags or ()), *markers})])
        self._filter = ReasoningFilter(tags, opened=opened) if tags else None
        self._stops = tuple(stop for stop in stop_strings if stop)
        self._lead = lead
        self._pending = ""  # answer not given out: it may be the beginning of a stop string
        self._pieces: list[str] = []
        self.stop_string: str | None = None
        """The stop string that ended the text."""

    @property
    def stopped(self) -> bool:
        """A stop string was found: sampling on is in vain, `push` returns nothing any more."""
        return self.stop_string is not None

    @property
    def text(self) -> str:
        """The text so far: no reasoning, cut before the stop string."""
        return "".join(self._pieces)

    @property
    def reasoning(self) -> str:
        """The reasoning so far, without its tags."""
        return self._filter.reasoning if self._filter else ""

    def push(self, token_id: int) -> str:
        """Take the next sampled id; return the text that is certain by now."""
        if self.stopped or token_id in self._skip:
            return ""
        return self._take(self._decoder.push(token_id))

    def finish(self) -> str:
        """The reply is over; return the text that was held back."""
        if self.stopped:
            return ""
        last = self._decoder.finish()
        if self._filter:
            last = self._filter.push(last) + self._filter.finish()
        shown = self._advance(last)
        if self.stopped:
            return shown
        rest, self._pending = self._pending, ""
        return shown + self._give(rest)

    def _take(self, decoded: str) -> str:
        return self._advance(self._filter.push(decoded) if self._filter else decoded)

    def _advance(self, answer: str) -> str:
        self._pending += answer
        if not self._drop_lead():
            return ""
        found = [(at, stop) for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:  # the one complete first, however the text was cut into tokens
            keep, self.stop_string = min(found, key=lambda hit: (hit[0] + len(hit[1]), hit[0]))
        else:
            keep = len(self._pending) - held_back(self._pending, self._stops)
        shown, self._pending = self._pending[:keep], self._pending[keep:]
        return self._give(shown)

    def _drop_lead(self) -> bool:
        """Take `lead` off the front; False while there is too little text to tell."""
        if self._lead and self._pending:
            if len(self._pending) < len(self._lead) and self._lead.startswith(self._pending):
                return False
            self._pending, self._lead = self._pending.removeprefix(self._lead), ""
        return True

    def _give(self, piece: str) -> str:
        if piece:
            self._pieces.append(piece)
        return piece


def _special_ids(tokenizer: Any, shown: Collection[str]) -> list[int]:
    return [
        int(index)
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and str(token) not in shown
    ]
