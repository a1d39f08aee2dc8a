"""Dialogues much longer than a segment: what the model reads before it is fine-tuned."""

from __future__ import annotations

import random

import torch
from nano_training.batches import ANSWER, Encoder, make_row

from infini_training.passkey import Batch

OTHERS = 256
"""Tokens per row, beside answers, whose next token is scored."""


def draw_dialogues(encoder: Encoder, rng: random.Random, rows: int, tokens: int) -> Batch:
    """Dense dialogues of `tokens` tokens in which every fact is asked once, however far back.

    Values weigh 1, the rest of an answer 0.1, a sample of the other tokens 0.05.
    """
    drawn = [make_row(rng, encoder, tokens) for _ in range(rows)]
    weights = torch.tensor([row["weight"] for row in drawn])
    weights = weights.where(weights >= ANSWER, torch.zeros(()))
    sampled = rng.sample(range(tokens), OTHERS)
    weights[:, sampled] = weights[:, sampled].clamp(min=0.05)
    return Batch(torch.tensor([row["ids"] for row in drawn]), weights, {})
