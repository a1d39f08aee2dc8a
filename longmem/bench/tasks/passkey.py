"""Numbers to be kept: pass keys (Mohtashami & Jaggi, arXiv 2305.16300), strings of digits (InfiniteBench)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from longmem.bench.tasks.draw import distinct, first_number, number
from longmem.bench.tasks.haystack import hide
from longmem.bench.tasks.task import CountTokens, Prompt, Question, less
from longmem.nano import phrases as ph

DEPTHS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class PassKey:
    """One pass key per depth, each with a person's name, all asked from the same state.

    The paper hides one key per prompt; here the other ten are distractors of the same form, and
    one reading of the history tests every depth. Scored as there: the first number of the reply.

    Args:
        depths: shares of the chatter told before each key, 0 .. 1; at most 100.
    """

    depths: tuple[float, ...] = DEPTHS
    name: str = "passkey"
    reply_tokens: int = 16

    def fact(self, name: str, value: str) -> str:
        """The user's turn that tells a key."""
        return f"The pass key of {name} is {value}. Remember it."

    def question(self, name: str) -> str:
        """The user's turn that asks for it."""
        return f"What is the pass key of {name}?"

    def value(self, rng: random.Random) -> str:
        """A number of five digits."""
        return number(rng, 5)

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        return _prompt(self, self.depths, seed, tokens, count_tokens)

    def score(self, question: Question, reply: str) -> float:
        """As `Task.score`: 1 if the first number of the reply is the key."""
        return float(first_number(reply) == question.answers[0])

    def fewer(self) -> Self | None:
        """As `Shrinking.fewer`: at evenly spread depths."""
        left = less(len(self.depths))
        if left == 0:
            return None
        step = len(self.depths) / left
        return replace(self, depths=tuple(self.depths[int(i * step)] for i in range(left)))


@dataclass(frozen=True)
class NumberString(PassKey):
    """As `PassKey`, with ten digits some of which stand in a row (InfiniteBench's Retrieve.Number,
    arXiv 2402.13718)."""

    name: str = "number_string"

    def fact(self, name: str, value: str) -> str:
        """As `PassKey.fact`."""
        return f"The sequence of digits of {name} is {value}. Remember it."

    def question(self, name: str) -> str:
        """As `PassKey.question`."""
        return f"What is the sequence of digits of {name}?"

    def value(self, rng: random.Random) -> str:
        """Ten digits: runs of one to four equal ones."""
        digits = number(rng, 1)
        while len(digits) < 10:
            digits += rng.choice("0123456789") * rng.randint(1, 4)
        return digits[:10]


def _prompt(
    task: PassKey, depths: Sequence[float], seed: int, tokens: int, count_tokens: CountTokens
) -> Prompt:
    rng = random.Random(seed)
    names = rng.sample(ph.part(ph.GIVEN_NAMES, unseen=False), len(depths))
    values = distinct(lambda: task.value(rng), len(depths))
    facts = [task.fact(name, value) for name, value in zip(names, values, strict=True)]
    stack = hide(rng, list(zip(depths, facts, strict=True)), tokens, count_tokens)
    questions = [
        Question(task.question(names[i]), (values[i],), (stack.turn_of[i],), stack.depth_of[i])
        for i in range(len(depths))
    ]
    return Prompt(stack.turns, questions)
