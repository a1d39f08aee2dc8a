"""Training batches of the pass-key task."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from infini_training.passkey import KEY_TOKENS, PassKeyText

OTHERS, OTHER, ANSWER = 64, 0.02, 0.1
"""Scored tokens of a row beside its answer, the weight of each, and that of the answer's wording."""
EDGES = 0.3
"""Share of batches whose answer lies across the edge of two segments: its second half has to be found
without the question in sight."""


@dataclass(frozen=True)
class Batch:
    """Sequences and what to learn of them.

    Args:
        ids: ``[B, T + 1]`` token ids.
        weights: ``[B, T]`` loss weight of each next token.
        repeats: segment -> how many times it counts as read.
    """

    ids: Tensor
    weights: Tensor
    repeats: dict[int, int] = field(default_factory=dict)


def draw_batch(
    text: PassKeyText, rng: random.Random, rows: int, tokens: int, segment: int, most_repeats: int
) -> Batch:
    """Sequences with a key at a random place, the rest filler that starts anywhere.

    Args:
        rows, tokens: B and about T; the exact length is drawn, so that the question falls anywhere
            in its segment.
        segment: tokens of a segment.
        most_repeats: largest number of times one filler segment counts as read: half of the batches
            draw it log-uniformly from 1 on.
    """
    form = rng.choice((text.plain, text.chat))
    length = tokens - rng.randrange(segment)
    if rng.random() < EDGES:  # the key's first token is predicted there
        place = rng.choice((-2, -1, 0, 1)) + len(form.closing) + KEY_TOKENS
        length = tokens - (tokens - place) % segment
    end = len(form.asking) + KEY_TOKENS + len(form.closing)
    times = round(most_repeats ** rng.random()) if rng.random() < 0.5 else 1
    repeated = rng.randrange(1, (length + 1 - end) // segment) if times > 1 else -1
    drawn = []
    for _ in range(rows):
        key = text.key(rng)
        needle, start = text.needle(key), len(form.opening) + len(text.intro)
        filler = length + 1 - start - len(needle) - end
        before = _place(rng, start, len(needle), filler, repeated, segment)
        body = text.haystack(rng.randrange(1000), needle, before, filler - before)
        drawn.append(form.opening + body + form.asking + text.answer(key) + form.closing)
    weights = torch.zeros(rows, length)
    weights[:, rng.sample(range(length - end), OTHERS)] = OTHER
    weights[:, length - len(form.closing) - KEY_TOKENS - 8 :] = ANSWER
    weights[:, length - len(form.closing) - KEY_TOKENS : length - len(form.closing)] = 1
    return Batch(torch.tensor(drawn), weights, {repeated: times} if times > 1 else {})


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
