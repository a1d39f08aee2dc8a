"""Needles in a haystack in RULER's four forms (arXiv 2404.06654, appendix B)."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from longmem.bench.tasks.draw import distinct, names, number, share_contained
from longmem.bench.tasks.haystack import Haystack, hide
from longmem.bench.tasks.task import CountTokens, Prompt, Question, less


def needle(key: str, value: str) -> str:
    """The turn that tells a value."""
    return f"One of the special magic numbers for {key} is: {value}."


def ask_one(key: str) -> str:
    """The question for a key's only value."""
    return f"What is the special magic number for {key} mentioned in the provided text?"


def ask_all(keys: list[str]) -> str:
    """The question for all values of one key, or for the values of several keys."""
    listed = keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"
    return f"What are all the special magic numbers for {listed} mentioned in the provided text?"


def value(rng: random.Random) -> str:
    """A number of seven digits."""
    return number(rng, 7)


class _Scored:
    """RULER's string match: the share of the values that stand in the reply."""

    def score(self, question: Question, reply: str) -> float:
        """As `Task.score`."""
        return share_contained(question.answers, reply)


@dataclass(frozen=True)
class _Needles:
    """Keys with their values, hidden: ``[i][j]`` is value j of key i."""

    keys: list[str]
    values: list[list[str]]
    stack: Haystack

    def question(self, text: str, which: list[int]) -> Question:
        """The question for all values of the keys `which`."""
        per_key = len(self.values[0])
        spots = [i * per_key + j for i in which for j in range(per_key)]
        turns = [self.stack.turn_of[spot] for spot in spots]
        depth = min(self.stack.depth_of[spot] for spot in spots)
        answers = [value for i in which for value in self.values[i]]
        return Question(text, tuple(answers), tuple(turns), depth)


def _hide(
    seed: int, keys: int, values: int, tokens: int, count_tokens: CountTokens
) -> tuple[random.Random, _Needles]:
    rng = random.Random(seed)
    named = names(rng, keys)
    numbers = distinct(lambda: value(rng), keys * values)
    grouped = [numbers[i * values : (i + 1) * values] for i in range(keys)]
    told = [
        (rng.random(), needle(name, told))
        for name, group in zip(named, grouped, strict=True)
        for told in group
    ]
    return rng, _Needles(named, grouped, hide(rng, told, tokens, count_tokens))


@dataclass(frozen=True)
class Single(_Scored):
    """One needle in chatter."""

    name: str = "niah_single"
    reply_tokens: int = 24

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        _, made = _hide(seed, 1, 1, tokens, count_tokens)
        return Prompt(made.stack.turns, [made.question(ask_one(made.keys[0]), [0])])


@dataclass(frozen=True)
class MultiKey(_Scored):
    """Many needles of one form, some of them asked for; the others are distractors.

    Args:
        share: share of all tokens that are needles, 0 .. 1.
        questions: most needles asked for.
    """

    share: float = 0.25
    questions: int = 20
    name: str = "niah_multikey"
    reply_tokens: int = 24

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        size = count_tokens(needle("golden-lantern", "1234567"))
        amount = max(4, round(tokens * self.share / size))
        rng, made = _hide(seed, amount, 1, tokens, count_tokens)
        asked = rng.sample(range(amount), min(self.questions, amount))
        return Prompt(made.stack.turns, [made.question(ask_one(made.keys[i]), [i]) for i in asked])


@dataclass(frozen=True)
class MultiValue(_Scored):
    """Keys with several values, told in different turns and asked for at once.

    Args:
        values: values of each key; RULER has 4.
        keys: keys told and asked for; RULER has 1.
    """

    values: int = 4
    keys: int = 10
    name: str = "niah_multivalue"
    reply_tokens: int = 48

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        _, made = _hide(seed, self.keys, self.values, tokens, count_tokens)
        return Prompt(
            made.stack.turns,
            [made.question(ask_all([key]), [i]) for i, key in enumerate(made.keys)],
        )

    def fewer(self) -> Self | None:
        """As `Shrinking.fewer`."""
        return replace(self, keys=less(self.keys)) if self.keys > 1 else None


@dataclass(frozen=True)
class MultiQuery(_Scored):
    """Several keys asked for in one question.

    Args:
        queries: keys in one question; RULER has 4.
        questions: how many questions; no key is in two of them.
    """

    queries: int = 4
    questions: int = 10
    name: str = "niah_multiquery"
    reply_tokens: int = 48

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        _, made = _hide(seed, self.queries * self.questions, 1, tokens, count_tokens)
        groups = [
            list(range(i * self.queries, (i + 1) * self.queries)) for i in range(self.questions)
        ]
        return Prompt(
            made.stack.turns,
            [made.question(ask_all([made.keys[i] for i in group]), group) for group in groups],
        )

    def fewer(self) -> Self | None:
        """As `Shrinking.fewer`."""
        return replace(self, questions=less(self.questions)) if self.questions > 1 else None
