"""Seeded chat with facts, chatter and questions: what the demo and the bench run on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from longmem.nano.pool import Facts, Key, Pool, tell


@dataclass(frozen=True)
class Question:
    """A question about one fact and what the right reply holds.

    Args:
        text: the user's turn.
        answer: the whole expected value; the last one told, if the fact was updated.
        fact_turn: index of the turn that holds that value.
        kind: one of `KINDS`.
        updated: whether an earlier turn gave another value.
    """

    text: str
    answer: str
    fact_turn: int
    kind: str
    updated: bool


@dataclass(frozen=True)
class Dialogue:
    """Turns as ``(role, text)`` and one question per fact, in the order the facts were told."""

    turns: list[tuple[str, str]]
    questions: list[Question]


def make_dialogue(
    seed: int,
    tokens: int,
    count_tokens: Callable[[str], int],
    facts_per_1000: float = 2.0,
    updated_share: float = 0.2,
    unseen: bool = False,
) -> Dialogue:
    """A day of chat with facts spread evenly over it, and one question per fact.

    Args:
        seed: same seed and arguments, same dialogue.
        tokens: length of the turns by `count_tokens`; the last exchange may run over it.
        count_tokens: length of a turn's text in tokens, its template included.
        facts_per_1000: facts per 1,000 tokens (updates not counted).
        updated_share: share of facts that get another value later.
        unseen: use names, values and phrasings that training never saw.
    """
    pool = Pool(random.Random(seed), unseen)
    amount = max(1, round(tokens * facts_per_1000 / 1000))
    facts = Facts(pool, owners=max(2, amount // 3), attributes=max(2, min(60, amount)))
    schedule = _schedule(pool.rng, facts, amount, tokens, updated_share)
    turns: list[tuple[str, str]] = []
    values: dict[Key, tuple[str, int]] = {}
    updated: set[Key] = set()
    length = 0
    while length < tokens or schedule:
        if schedule and schedule[-1][0] <= length:
            key = schedule.pop()[1]
            updated |= {key} & values.keys()
            text, value = tell(pool, key, values.get(key))
            values[key] = (value, len(turns))
            reply = pool.ack()
        else:
            text, reply = pool.chatter(facts.names)
        turns += [("user", text), ("assistant", reply)]
        length += count_tokens(text) + count_tokens(reply)
    return Dialogue(
        turns,
        [
            Question(pool.question(key), value, turn, key.kind, key in updated)
            for key, (value, turn) in values.items()
        ],
    )


def _schedule(
    rng: random.Random, facts: Facts, amount: int, tokens: int, share: float
) -> list[tuple[float, Key]]:
    """``(position in tokens, key)``, last first; a key's second entry is its update."""
    entries: list[tuple[float, Key]] = []
    for index in range(amount):
        key = facts.new_key()
        start = tokens * index / amount + rng.random() * tokens / amount * 0.9
        entries.append((start, key))
        if rng.random() < share:
            entries.append((start + (tokens - start) * rng.uniform(0.05, 0.95), key))
    return sorted(entries, key=lambda entry: -entry[0])
