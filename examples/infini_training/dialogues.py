"""Dialogues much longer than a segment: what the model reads before it is fine-tuned."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

import torch

from infini_training.batches import ANSWER, Batch
from longmem.nano.dialogue import make_dialogue

OTHER = 0.01
Encode = Callable[[str], list[int]]


def draw_dialogues(encode: Encode, rng: random.Random, rows: int, tokens: int) -> Batch:
    """Chats with facts, and then questions about them in any order: most answers lie many segments
    back. Values weigh 1, the rest of an answer 0.1, all else 0.01.

    Args:
        encode: text to token ids, special tokens included.
        rng: the only source of randomness.
        rows, tokens: B and T.
    """
    drawn = [_dialogue(encode, rng, tokens) for _ in range(rows)]
    ids = torch.tensor([[token for token, _ in row] for row in drawn])
    weights = torch.tensor([[weight for _, weight in row[1:]] for row in drawn])
    return Batch(ids, weights)


def _dialogue(encode: Encode, rng: random.Random, tokens: int) -> list[tuple[int, float]]:
    """T + 1 tokens, each with the weight of its prediction."""
    seed, told = rng.randrange(2**31), round(tokens * rng.uniform(0.5, 0.8))
    dialogue = make_dialogue(seed, told, lambda text: len(encode(text)) + 5, facts_per_1000=15)
    row: list[tuple[int, float]] = []
    for role, text in dialogue.turns:
        row += _turn(encode, role, [(text, OTHER)])
    while len(row) <= tokens:
        for question in rng.sample(dialogue.questions, len(dialogue.questions)):
            row += _turn(encode, "user", [(question.text, OTHER)])
            row += _turn(encode, "assistant", [(question.answer, 1.0), (".", ANSWER)])
    return row[: tokens + 1]


def _turn(encode: Encode, role: str, parts: Iterable[tuple[str, float]]) -> list[tuple[int, float]]:
    framed = [(f"<|im_start|>{role}\n", OTHER), *parts, ("<|im_end|>\n", OTHER)]
    return [(token, weight) for text, weight in framed for token in encode(text)]
