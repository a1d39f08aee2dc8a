"""Facts told in chat, a fifth of them updated later, over one day or several."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from longmem.bench.tasks.draw import share_contained
from longmem.bench.tasks.task import CountTokens, Prompt, Question, Turns
from longmem.nano import dialogue
from longmem.nano.dialogue import make_dialogue

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Conversation:
    """The dialogues of `longmem.nano.dialogue`, with 2 facts per 1,000 tokens, 1 in 5 updated.

    Over several days each day is opened by a sentence about it; what was told on one day is updated
    on that day or a later one, and all is asked at the end of the last.

    Args:
        days: how many, of equal length; more than one makes the task called "days".
        unseen: names, values and phrasings that nano's training never saw.
    """

    days: int = 1
    unseen: bool = False
    reply_tokens: int = 32

    @property
    def name(self) -> str:
        """As `Task.name`."""
        base = "conversation" if self.days == 1 else "days"
        return f"{base}_unseen" if self.unseen else base

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        """As `Task.make`."""
        made = make_dialogue(seed, tokens, count_tokens, unseen=self.unseen)
        mornings = self._mornings(made.turns, count_tokens)
        turns: Turns = []
        for at, turn in enumerate(made.turns):
            turns += _morning(mornings.index(at)) if at in mornings else []
            turns.append(turn)
        begins = list(accumulate((count_tokens(text) for _, text in turns), initial=0))
        questions = [
            _question(
                asked, asked.fact_turn + 2 * bisect_left(mornings, asked.fact_turn + 1), begins
            )
            for asked in made.questions
        ]
        return Prompt(turns, questions)

    def _mornings(self, turns: Turns, count_tokens: CountTokens) -> list[int]:
        """Indices of the turns that a day begins with; none if there is only one day."""
        if self.days == 1:
            return []
        ends = list(accumulate(count_tokens(text) for _, text in turns))
        starts = [bisect_left(ends, ends[-1] * day / self.days) for day in range(self.days)]
        return [at + at % 2 for at in starts]  # exchanges stay whole

    def score(self, question: Question, reply: str) -> float:
        """As `Task.score`: 1 if the whole value stands in the reply."""
        return share_contained(question.answers, reply)


def _morning(day: int) -> Turns:
    said = f"Good morning, it is {WEEKDAYS[day % 7]}, a new day begins."
    return [("user", said), ("assistant", "Good morning.")]


def _question(asked: dialogue.Question, turn: int, begins: list[int]) -> Question:
    kind = "updated" if asked.updated else asked.kind
    return Question(asked.text, (asked.answer,), (turn,), begins[turn] / begins[-1], kind)
