"""The pass-key test of landmark attention (arXiv 2305.16300) as token ids."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

INTRO = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there. "
)
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "What is the pass key? The pass key is "


@dataclass(frozen=True)
class Batch:
    """Sequences that end with the answer.

    Args:
        ids: ``[B, T + 1]`` token ids.
        weights: ``[B, T]`` loss weight of each next token.
        repeats: filler segment -> how many times it counts as read.
    """

    ids: Tensor
    weights: Tensor
    repeats: dict[int, int]


class PassKeyText:
    """Builds pass-key texts of an exact number of tokens.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
        self.intro, self._filler = self._encode(INTRO), self._encode(FILLER)
        self.question = self._encode(QUESTION)

    def key(self, rng: random.Random) -> str:
        """Five digits."""
        return str(rng.randint(10_000, 99_999))

    def answer(self, key: str) -> list[int]:
        """The tokens of a key."""
        return list(self._encode(key))

    def needle(self, key: str) -> list[int]:
        """The sentences that tell a key."""
        return list(self._encode(NEEDLE.format(key=key)))

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


def draw_batch(
    text: PassKeyText,
    rng: random.Random,
    rows: int,
    tokens: int,
    segment: int,
    most_repeats: int,
    other_weight: float = 0.02,
) -> Batch:
    """Sequences with a key at a random place, the rest filler that starts anywhere.

    Args:
        rows, tokens: B and about T; the exact length is drawn, so that the question falls anywhere
            in its segment.
        segment: tokens of a segment.
        most_repeats: largest number of times one filler segment counts as read: half of the batches
            draw it log-uniformly from 1 on.
        other_weight: weight of each of 64 other tokens, so that the model keeps its language.
    """
    length = tokens - rng.randrange(segment)
    last = (length - len(text.question) - 2) // segment
    repeated = rng.randrange(1, last)  # one filler segment, the same in all rows
    rows_ids = []
    for _ in range(rows):
        key = text.key(rng)
        needle, ending = text.needle(key), text.question + text.answer(key)
        filler = length + 1 - len(text.intro) - len(needle) - len(ending)
        before = _place(rng, len(text.intro), len(needle), filler, repeated, segment)
        body = text.haystack(rng.randrange(1000), needle, before, filler - before)
        rows_ids.append(body + ending)
    weights = torch.zeros(rows, length)
    weights[:, rng.sample(range(length - 20), 64)] = other_weight
    weights[:, -2:] = 1
    times = round(most_repeats ** rng.random()) if rng.random() < 0.5 else 1
    return Batch(torch.tensor(rows_ids), weights, {repeated: times} if times > 1 else {})


def _place(
    rng: random.Random, start: int, needle: int, filler: int, repeated: int, segment: int
) -> int:
    """Filler tokens before the needle, so that none of it lies in the repeated segment; a sixth of
    the needles each at the very start and at the very end."""
    edge = rng.random()
    while True:
        before = 0 if edge < 1 / 6 else filler if edge > 5 / 6 else rng.randint(0, filler)
        first, last = (start + before) // segment, (start + before + needle - 1) // segment
        if not first <= repeated <= last:
            return before
        edge = rng.random()
