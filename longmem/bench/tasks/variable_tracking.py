"""Variable tracking (RULER, arXiv 2404.06654, section 3): which names hold a value, hop by hop."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from longmem.bench.tasks.draw import distinct, number, share_contained
from longmem.bench.tasks.haystack import hide
from longmem.bench.tasks.task import CountTokens, Prompt, Question, less

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def variable(rng: random.Random) -> str:
    """A name of five capital letters."""
    return "".join(rng.choices(_LETTERS, k=5))


def assign(name: str, held: str) -> str:
    """The turn that assigns a number, or another variable as "VAR ABCDE"."""
    return f"VAR {name} = {held}"


def ask(value: str) -> str:
    """The turn that asks for all names of a value."""
    return f"Find all variables that are assigned the value {value} in the text above."


@dataclass(frozen=True)
class VariableTracking:
    """Chains of assignments in order, each link told later than the one before.

    Args:
        hops: links after the first of each chain; RULER has 4.
        chains: how many chains, each asked for; RULER has 1.
    """

    hops: int = 4
    chains: int = 4
    name: str = "variable_tracking"
    reply_tokens: int = 48

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        rng, links = random.Random(seed), self.hops + 1
        names = distinct(lambda: variable(rng), self.chains * links)
        values = distinct(lambda: number(rng, 5), self.chains)
        told: list[tuple[float, str]] = []
        for chain, value in enumerate(values):
            own = names[chain * links : (chain + 1) * links]
            held = [value, *(f"VAR {name}" for name in own[:-1])]
            depths = sorted(rng.random() for _ in own)
            told += [(depths[i], assign(own[i], held[i])) for i in range(links)]
        stack = hide(rng, told, tokens, count_tokens)
        questions = []
        for chain, value in enumerate(values):
            spots = range(chain * links, (chain + 1) * links)
            answers, turns = [names[i] for i in spots], [stack.turn_of[i] for i in spots]
            questions.append(
                Question(ask(value), tuple(answers), tuple(turns), stack.depth_of[spots[0]])
            )
        return Prompt(stack.turns, questions)

    def fewer(self) -> Self | None:
        """As `Shrinking.fewer`."""
        return replace(self, chains=less(self.chains)) if self.chains > 1 else None

    def score(self, question: Question, reply: str) -> float:
        """As `Task.score`: share of the names in the reply."""
        return share_contained(question.answers, reply)
