"""What a recall task gives the bench: a conversation, and questions about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

CountTokens = Callable[[str], int]
"""Length of a turn's text in tokens, its template included."""

Turns = list[tuple[str, str]]
"""What was said, as ``(role, text)``."""


@dataclass(frozen=True)
class Question:
    """A question asked at the end of a conversation, and what the right reply holds.

    Args:
        text: the user's turn.
        answers: the values the reply has to hold; several where all of them are asked for.
        evidence: indices of the turns that hold them.
        depth: where the (first) evidence stands, as share of the conversation's tokens before it.
        label: what kind of question it is, for tables ("code", "updated" ...); may be empty.
    """

    text: str
    answers: tuple[str, ...]
    evidence: tuple[int, ...]
    depth: float
    label: str = ""


@dataclass(frozen=True)
class Prompt:
    """Turns as ``(role, text)``, and questions that are each asked from their end."""

    turns: Turns
    questions: list[Question]


class Task(Protocol):
    """One recall task. Stateless."""

    @property
    def name(self) -> str:
        """Its name in ``longmem bench recall --task``."""

    @property
    def reply_tokens(self) -> int:
        """Most tokens a reply may take."""

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """A conversation of about `tokens` tokens; same arguments, same prompt."""

    def score(self, question: Question, reply: str) -> float:
        """Share of right answers in a reply, 0 .. 1, as the task's paper scores it."""


@runtime_checkable
class Shrinking(Protocol):
    """A task that tells so many things at any length, but could tell fewer of them."""

    def fewer(self) -> Self | None:
        """The same task with about a fifth less to tell; None if it cannot be less."""


def less(amount: int) -> int:
    """About a fifth less, and at least 1 less."""
    return min(amount - 1, amount * 4 // 5)
