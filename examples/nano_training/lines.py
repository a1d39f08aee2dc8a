"""Dense dialogues to train on: near-duplicate keys are the rule, every fact is asked once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from longmem.nano.pool import Facts, Key, Pool, tell

INVENTED = (0.0, 0.2, 0.5, 0.8)
"""Shares of invented names and words that training dialogues draw from."""


@dataclass(frozen=True)
class Line:
    """One turn as the trainer needs it: `act` is what it does, `key` which fact it is about.

    A reply that lists several values has them in `listed`, each with its fact.
    """

    role: str
    text: str
    act: str
    key: int = -1
    value: str = ""
    listed: tuple[tuple[int, str], ...] = ()

    @property
    def values(self) -> tuple[tuple[int, str], ...]:
        """``(fact, value)`` of all the reply holds, in its order."""
        return self.listed or ((self.key, self.value),)


def training_lines(
    rng: random.Random, tokens: int = 512, shared: Facts | None = None
) -> Iterator[Line]:
    """An endless dense dialogue to train on: every fact is asked once, some are updated before.

    How many facts are open at a time, how many owners share them and how much chatter lies
    between is drawn per dialogue.

    Args:
        rng: the only source of randomness.
        tokens: about how many tokens will be used; sets how many facts may be open at a time.
        shared: keys shared with other dialogues, so that theirs compete too; None has its own.
    """
    own = Pool(rng, invented=rng.choice(INVENTED))
    facts = shared or Facts(own, owners=rng.randint(1, 8), attributes=rng.randint(2, 8))
    pool = facts.pool
    share_chatter, share_updates = (
        rng.choice((0.0, 0.0, 0.1, 0.3, 0.6)),
        rng.choice((0.0, 0.3, 0.6)),
    )
    most_open = rng.randint(1, max(2, tokens // 64))
    told: list[tuple[Key, str]] = []
    open_keys: list[int] = []
    changed: set[int] = set()
    if rng.random() < 0.3:
        yield Line("system", pool.system(), "system")
    pauses = rng.choice(((0,), (0,), (0, 0, 2), (2, 3, 4)))
    asking, pause = False, 0
    while True:
        asks = bool(open_keys) and (asking or len(open_keys) >= most_open or rng.random() < 0.1)
        pause, asking = pause - 1 if asks == asking else rng.choice(pauses), asks
        if pause > 0 or rng.random() < share_chatter:
            text, reply = pool.chatter(facts.names)
            yield Line("user", text, "chatter")
            yield Line("assistant", reply, "chatter")
        elif asking:
            index = open_keys.pop(rng.randrange(len(open_keys)))
            key, value = told[index]
            act = "generic" if key.generic and not shared else "answer"
            yield Line("user", pool.question(key), "question", index)
            yield Line("assistant", f"{value}.", act, index, value)
        else:
            stale = [index for index in open_keys if index not in changed]
            if stale and rng.random() < share_updates:
                index = rng.choice(stale)
                changed.add(index)
                key, before = told[index]
                text, value = tell(pool, key, (before, 0))
                told[index] = (key, value)
            else:
                index, key = len(told), facts.new_key()
                text, value = tell(pool, key, None)
                told.append((key, value))
                open_keys.append(index)
            act = "generic fact" if key.generic and not shared else "fact"
            yield Line("user", text, act, index, value)
            yield Line("assistant", pool.ack(), "ack")
