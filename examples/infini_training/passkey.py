"""The pass-key test of landmark attention (arXiv 2305.16300) as token ids."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

INTRO = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there. "
)
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "What is the pass key? "
REPLY = "The pass key is "
KEY_TOKENS = 2
"""Of five digits: nano's tokenizer takes up to three at a time."""


@dataclass(frozen=True)
class Form:
    """What stands around the text: nothing, as in the paper, or the turns of a chat.

    Args:
        opening: before the introduction.
        asking: after the text; the key follows.
        closing: after the key.
    """

    opening: list[int]
    asking: list[int]
    closing: list[int]


class PassKeyText:
    """Builds pass-key texts of an exact number of tokens.

    Args:
        encode: text to token ids, special tokens included.
    """

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self._encode = encode
        self.intro, self._filler = encode(INTRO), encode(FILLER)
        self.plain = Form([], encode(QUESTION + REPLY), encode("."))
        turn = "<|im_end|>\n<|im_start|>"
        asking = f"{turn}assistant\nOkay.{turn}user\n{QUESTION.strip()}{turn}assistant\n{REPLY}"
        self.chat = Form(encode("<|im_start|>user\n"), encode(asking), encode(".<|im_end|>\n"))

    def key(self, rng: random.Random) -> str:
        """Five digits."""
        return str(rng.randint(10_000, 99_999))

    def answer(self, key: str) -> list[int]:
        """The tokens of a key."""
        return self._encode(key)

    def needle(self, key: str) -> list[int]:
        """The sentences that tell a key."""
        return self._encode(NEEDLE.format(key=key))

    def filler(self, phase: int, tokens: int) -> list[int]:
        """`tokens` tokens of the repeated filler, from its token `phase` on."""
        at = phase % len(self._filler)
        times = (at + tokens) // len(self._filler) + 1
        return (self._filler * times)[at : at + tokens]

    def haystack(self, phase: int, needle: list[int], before: int, after: int) -> list[int]:
        """Introduction, `before` tokens of filler, the needle, `after` tokens of filler. The needle
        cuts into the filler anywhere, as the landmark paper has it."""
        rest = self.filler(phase + before, after)
        return self.intro + self.filler(phase, before) + needle + rest
