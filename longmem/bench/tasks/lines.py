"""Line retrieval (LongChat, lmsys.org/blog/2023-06-29-longchat): a number per named line."""

from __future__ import annotations

import random
from dataclasses import dataclass

from longmem.bench.tasks.draw import first_number, names
from longmem.bench.tasks.haystack import hide
from longmem.bench.tasks.task import CountTokens, Prompt, Question


def line(key: str, value: str) -> str:
    """The turn that tells a line's number."""
    return f"line {key}: REGISTER_CONTENT is <{value}>"


def ask(key: str) -> str:
    """The turn that asks for it."""
    return f"Tell me what is the <REGISTER_CONTENT> in line {key}?"


def value(rng: random.Random) -> str:
    """A number from 1 to 50,000."""
    return str(rng.randint(1, 50_000))


@dataclass(frozen=True)
class Lines:
    """Many lines, some of them asked for. The paper's text has nothing but lines; here chatter
    lies between, so that the number of lines can be chosen apart from the length.

    Args:
        share: share of all tokens that are lines, 0 .. 1.
        questions: most lines asked for.
    """

    share: float = 0.25
    questions: int = 20
    name: str = "lines"
    reply_tokens: int = 16

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        rng = random.Random(seed)
        amount = max(4, round(tokens * self.share / count_tokens(line("golden-lantern", "12345"))))
        keys = names(rng, amount)
        values = [value(rng) for _ in keys]
        told = [(i / amount, line(keys[i], values[i])) for i in range(amount)]
        stack = hide(rng, told, tokens, count_tokens)
        asked = rng.sample(range(amount), min(self.questions, amount))
        questions = [
            Question(ask(keys[i]), (values[i],), (stack.turn_of[i],), stack.depth_of[i])
            for i in asked
        ]
        return Prompt(stack.turns, questions)

    def score(self, question: Question, reply: str) -> float:
        """As `Task.score`: 1 if the first number of the reply is the line's."""
        return float(first_number(reply) == question.answers[0])
