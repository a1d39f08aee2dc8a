"""Key-value retrieval (Lost in the Middle, arXiv 2307.03172, section 3): random UUIDs, no meaning."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from longmem.bench.tasks.draw import distinct, share_contained, uuid4
from longmem.bench.tasks.haystack import hide
from longmem.bench.tasks.task import CountTokens, Prompt, Question, less


def pair(key: str, value: str) -> str:
    """The turn that tells a pair: one line of the paper's JSON object."""
    return f'"{key}": "{value}"'


def ask(key: str) -> str:
    """The turn that asks for a value, in the words of the paper's prompt."""
    return f'Key: "{key}" Corresponding value:'


@dataclass(frozen=True)
class KeyValue:
    """Pairs of UUIDs spread over chatter; some are asked for.

    All pairs are told, even where they are longer than the tokens asked for.

    Args:
        pairs: how many are told; the paper has 75, 140 and 300.
        questions: most pairs asked for, evenly over all depths.
    """

    pairs: int
    questions: int = 20
    reply_tokens: int = 48

    @property
    def name(self) -> str:
        """As `Task.name`."""
        return f"kv_{self.pairs}"

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        rng = random.Random(seed)
        drawn = distinct(lambda: uuid4(rng), 2 * self.pairs)
        keys, values = drawn[::2], drawn[1::2]
        told = [(i / self.pairs, pair(keys[i], values[i])) for i in range(self.pairs)]
        stack = hide(rng, told, tokens, count_tokens)
        step = max(1, self.pairs // self.questions)
        asked = range(rng.randrange(step), self.pairs, step)[: self.questions]
        questions = [
            Question(ask(keys[i]), (values[i],), (stack.turn_of[i],), stack.depth_of[i])
            for i in asked
        ]
        return Prompt(stack.turns, questions)

    def fewer(self) -> Self | None:
        """As `Shrinking.fewer`."""
        return replace(self, pairs=less(self.pairs)) if self.pairs > 1 else None

    def score(self, question: Question, reply: str) -> float:
        """As `Task.score`: 1 if the value stands in the reply."""
        return share_contained(question.answers, reply)
