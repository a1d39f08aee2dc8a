"""The bench's recall tasks as dense rows to train on: a few facts told, then asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from longmem.bench.tasks import key_value, lines, niah, variable_tracking
from longmem.bench.tasks.draw import number, uuid4
from longmem.bench.tasks.passkey import NumberString, PassKey
from longmem.bench.tasks.variable_tracking import variable
from longmem.nano import phrases as ph
from longmem.nano.pool import Pool
from nano_training.lines import INVENTED, Line

SHARES = {
    "key_value": 0.08,
    "multi_key": 0.30,
    "multi_value": 0.38,
    "multi_query": 0.12,
    "lines": 0.06,
    "passkey": 0.02,
    "number_string": 0.02,
    "variable_tracking": 0.02,
}
"""How often a group of rows is of each task."""

LONG = ("key_value", "multi_value", "multi_query", "variable_tracking")
CHAINS = (1, 2, 3, 5, 5)  # lengths of chains of variables

Group = list[tuple[str, str]]  # (key, value) of facts that one question asks for


class TaskLines:
    """Rows of one task whose keys are near-duplicates of each other, and all different.

    Args:
        rng: the only source of randomness.
        task: one of `SHARES`.
    """

    def __init__(self, rng: random.Random, task: str) -> None:
        self.rng, self.task = rng, task
        self._pool = Pool(rng, invented=rng.choice(INVENTED))
        drawn = [
            [self._pool.word(words) for _ in range(rng.choice((10, 25, 60)))]
            for words in (ph.ADJECTIVES, ph.NOUNS)
        ]
        self._adjectives, self._nouns = drawn
        self._used: set[str] = set()

    def row(self) -> Iterator[Line]:
        """An endless row: facts, then questions about them, over and over."""
        rng, told = self.rng, 0
        chatter, ack = rng.choice((0.0, 0.0, 0.3)), rng.choice((0.0, 0.0, 1.0))
        if self.task in LONG:  # a row has little room
            chatter, ack = chatter / 2, 0.0
        while True:
            groups = [self._group() for _ in range(self._groups())]
            place: dict[str, int] = {}
            order = [group for group in groups for _ in group]
            rng.shuffle(order)  # groups are told in turns, each in its own order
            untold = {id(group): iter(group) for group in groups}
            facts = [next(untold[id(group)]) for group in order]
            for key, value in facts:
                yield from self._chatter(chatter)
                place[value] = told
                yield Line("user", self._fact(key, value), "fact", told, value)
                told += 1
                if rng.random() < ack:
                    yield Line("assistant", self._pool.ack(), "ack")
            rng.shuffle(groups)
            for group in groups:
                yield from self._chatter(chatter)
                yield from self._exchange(group, place)

    def _exchange(self, group: Group, place: dict[str, int]) -> Iterator[Line]:
        listed = tuple((place[value], value) for _, value in group)
        key, value = listed[0]
        yield Line("user", self._question([key for key, _ in group]), "question", key)
        text = ", ".join(value for _, value in group) + "."
        yield Line("assistant", text, "answer", key, value, listed)

    def _groups(self) -> int:
        """How many questions are asked after one telling."""
        if self.task in ("multi_value", "multi_query", "variable_tracking"):
            return self.rng.choice((1, 1, 2))
        return self.rng.choice((1, 2, 2, 2, 3) if self.task == "key_value" else (1, 2, 3, 4))

    def _group(self) -> Group:
        if self.task == "multi_value":
            key = self._key()
            return [(key, self._value()) for _ in range(self.rng.choice((1, 2, 2, 3, 4, 4)))]
        if self.task == "variable_tracking":  # each holds the one before, the first a number
            names = [self._new(lambda: variable(self.rng)) for _ in range(self.rng.choice(CHAINS))]
            held = [self._new(lambda: number(self.rng, 5)), *(f"VAR {name}" for name in names)]
            return list(zip(held, names, strict=False))
        size = self.rng.choice((2, 2, 3, 4)) if self.task == "multi_query" else 1
        return [(self._key(), self._value()) for _ in range(size)]

    def _key(self) -> str:
        return self._new(self._draw_key)

    def _draw_key(self) -> str:
        if self.task == "key_value":
            return uuid4(self.rng)
        if self.task in ("passkey", "number_string"):
            return self._pool.name()
        adjectives, nouns = self._adjectives, self._nouns
        if self.rng.random() < 0.3:  # the small pools run dry in the end
            adjectives = [self._pool.word(ph.ADJECTIVES)]
        return f"{self.rng.choice(adjectives)}-{self.rng.choice(nouns)}"

    def _value(self) -> str:
        return self._new(self._draw_value)

    def _draw_value(self) -> str:
        if self.task == "key_value":
            return uuid4(self.rng)
        if self.task == "lines":
            return lines.value(self.rng)
        if self.task in _NAMED:
            return _NAMED[self.task].value(self.rng)
        return number(self.rng, 7)

    def _new(self, draw: Callable[[], str]) -> str:
        """Something not drawn before for any row; a name may have to be invented."""
        tries = 0
        while (made := draw()) in self._used:
            tries += 1
            self._pool.invented = 1.0 if tries > 20 else self._pool.invented
        self._used.add(made)
        return made

    def _fact(self, key: str, value: str) -> str:
        if self.task == "key_value":
            return key_value.pair(key, value)
        if self.task == "lines":
            return lines.line(key, value)
        if self.task == "variable_tracking":
            return variable_tracking.assign(value, key)
        if self.task in _NAMED:
            return _NAMED[self.task].fact(key, value)
        return niah.needle(key, value)

    def _question(self, keys: list[str]) -> str:
        if self.task == "key_value":
            return key_value.ask(keys[0])
        if self.task == "lines":
            return lines.ask(keys[0])
        if self.task == "variable_tracking":
            return variable_tracking.ask(keys[0])
        if self.task in _NAMED:
            return _NAMED[self.task].question(keys[0])
        if self.task == "multi_key":
            return niah.ask_one(keys[0])
        return niah.ask_all(keys[:1] if self.task == "multi_value" else keys)

    def _chatter(self, share: float) -> Iterator[Line]:
        if self.rng.random() < share:
            user, assistant = self._pool.chatter([])
            yield Line("user", user, "chatter")
            yield Line("assistant", assistant, "chatter")


_NAMED = {"passkey": PassKey(), "number_string": NumberString()}
