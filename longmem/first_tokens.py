"""The first tokens of a text, without reading all of a long one."""

from __future__ import annotations

from typing import Any

_CHARACTERS = 16
"""Characters tried per token; texts with longer tokens take more tries."""
_EDGE = 64
"""Tokens at a cut that more text might have changed."""


def first_tokens(tokenizer: Any, text: str, most: int, **options: Any) -> list[int]:
    """The first `most` token ids of a text, or all if there are fewer: those of the whole text.

    Args:
        tokenizer: of transformers.
        options: for the tokenizer.
    """
    length = _CHARACTERS * (most + _EDGE)
    while True:
        ids: list[int] = tokenizer(text[:length], verbose=False, **options)["input_ids"]
        if length >= len(text) or len(ids) >= most + _EDGE:
            return ids[:most]
        length *= 4
