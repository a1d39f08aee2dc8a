"""Tokenise one turn in its place, and keep its text from speaking the template's language.

Two things make this more than ``tokenizer(text)``. The ids of a turn must be those the whole
conversation would have there, so a turn is encoded behind the last pieces of the turn before it
(some tokenizers put a space in front of whatever comes first). And a control token spelled out in a
turn's text ("<|im_end|>") must not become that token: the string is cut behind its first character
and the parts are encoded apart, which gives ordinary tokens that decode to the same characters.
``split_special_tokens=True`` is no substitute: it overlooks added tokens that are not flagged
special (Qwen3's ``<think>``, ``<tool_response>``) and switches off the template's own tokens too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from longmem.chat.pieces import any_of
from longmem.errors import InputError

ANCHOR = "x"
"""Stands in for the text of the turn before, where its closing holds no control token."""

_SPELLED = (
    "the text spells a control token of the model that this tokenizer cannot encode as ordinary "
    "text; rephrase it, or take the token out"
)


class TurnEncoder:
    """Text of single turns to token ids.

    Args:
        tokenizer: a Hugging Face tokenizer, fast or slow.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.added = tuple(str(token) for token in added.values() if not str(token).isspace())
        """Strings that the tokenizer turns into one token whatever surrounds them."""
        self._ids = {str(token): int(index) for index, token in added.items()}
        self._special = {str(token) for token in added.values() if token.special}
        self._guarded: frozenset[str] = frozenset(self._special)
        self._head = lru_cache(maxsize=64)(self._head_ids)
        self._own_count = lru_cache(maxsize=64)(self._count_pieces)
        self._pattern = lru_cache(maxsize=8)(any_of)

    def guard(self, template: str, pieces: Iterable[str]) -> None:
        """Protect, besides special tokens, each added token that the template writes itself."""
        written = "\0".join([template, *pieces])
        self._guarded = frozenset(
            token for token in self.added if token in self._special or token in written
        )

    def encode(self, text: str, context: str = "") -> list[int]:
        """Ids `text` has behind `context`; both are trusted, control tokens in them count.

        Where a token would straddle the two, `text` is encoded by itself.
        """
        if not context:
            return self._encode(text)
        head = self._head(context)
        ids = self._encode(context + text)
        return ids[len(head) :] if tuple(ids[: len(head)]) == head else self._encode(text)

    def encode_turn(
        self, prefix: str, text: str, suffix: str, *, context: str, allowed: Sequence[str] = ()
    ) -> list[int]:
        """Ids of a whole turn; `text` is not trusted.

        Args:
            allowed: control tokens that are let through in `text`.

        Raises:
            InputError: the tokenizer turns `text` into a control token however it is cut.
        """
        parts = self._cut(prefix, text, suffix, self._guarded - set(allowed))
        ids = self.encode(parts[0], context)
        for part in parts[1:]:
            ids += self.encode(part, "\n")
        if self._count(ids, allowed) > self._own_count(prefix, suffix, context, tuple(allowed)):
            raise InputError(_SPELLED)
        return ids

    def mark(self, text: str, mark: str) -> str:
        """`text` with `mark` inside every control token spelled in it, for `encode_marked`."""
        return self._pattern(self._guarded).sub(
            lambda found: found[0][0] + mark + found[0][1:], text
        )

    def encode_marked(self, text: str, mark: str) -> list[int]:
        """Ids of a first turn whose parts that are not trusted went through `mark`.

        Raises:
            InputError: as `encode_turn`.
        """
        ids = [index for part in text.split(mark) for index in self._encode(part)]
        if self._count(ids, ()) > self._count(self._encode(text.replace(mark, ANCHOR)), ()):
            raise InputError(_SPELLED)
        return ids

    def control_ids(self, text: str) -> list[int]:
        """Ids of the control tokens in trusted text, in order."""
        guarded = {self._ids[token] for token in self._guarded}
        return [index for index in self._encode(text) if index in guarded]

    def stable(self, closing: str, rest: str, before: Sequence[str], behind: Sequence[str]) -> bool:
        """Whether encoding `rest` behind `closing` gives the tokens of both in one string.

        Args:
            before, behind: texts to try it between.
        """
        for text in before:
            head = self._encode(text + closing)
            for next_text in behind:
                if self._encode(text + closing + rest + next_text)[: len(head)] != head:
                    return False
        return True

    def context(self, closing: str) -> str:
        """The end of a turn, as much as the encoding of the next turn can depend on."""
        starts = [match.start() for match in any_of(self.added).finditer(closing)]
        return closing[starts[-1] :] if starts else ANCHOR + closing

    def _cut(self, prefix: str, text: str, suffix: str, guarded: frozenset[str]) -> list[str]:
        whole, begin, end = prefix + text + suffix, len(prefix), len(prefix) + len(text)
        pattern, cuts, at = self._pattern(guarded), [0], 0
        while match := pattern.search(whole, at):
            at = match.start() + 1
            if match.end() <= begin or match.start() >= end:
                at = match.end()
            else:
                cuts.append(at)
        return [whole[a:b] for a, b in zip(cuts, [*cuts[1:], len(whole)], strict=True)]

    def _count(self, ids: Sequence[int], allowed: Sequence[str]) -> int:
        unknown = self._tokenizer.unk_token_id
        guarded = {self._ids[token] for token in self._guarded - set(allowed)} - {unknown}
        return sum(index in guarded for index in ids)

    def _count_pieces(
        self, prefix: str, suffix: str, context: str, allowed: tuple[str, ...]
    ) -> int:
        return self._count(self.encode(prefix + ANCHOR + suffix, context), allowed)

    def _head_ids(self, context: str) -> tuple[int, ...]:
        return tuple(self._encode(context))

    def _encode(self, text: str) -> list[int]:
        # verbose=False: longer than the trained positions is what longmem is for
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return [int(index) for index in encoded["input_ids"]]
