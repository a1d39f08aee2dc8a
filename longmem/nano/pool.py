"""Names, values and sentences drawn at random: what dialogues are made of.

A fact binds a value to a key, and a key is an owner and an attribute ("Anna's locker code"). Part
of every list is reserved: with ``unseen=True`` names, values and phrasings come from the reserved
part, which training never draws from.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from longmem.nano import phrases as ph

KINDS = tuple(ph.ATTRIBUTES)
"""The kinds of fact: code, passkey, person, city, title, phrase, date."""


@dataclass(frozen=True)
class Key:
    """What a fact is about.

    Args:
        owner: in the possessive ("Kelmar's", "my", "the").
        name: as in "of Kelmar"; empty where that cannot be said.
        attribute: "gym code" and the like.
        kind: one of `KINDS`.
    """

    owner: str
    name: str
    attribute: str
    kind: str

    @property
    def generic(self) -> bool:
        """True where another dialogue is likely to use the same key, as in "my locker code"."""
        return not self.name or self.owner.startswith("my ")


@dataclass
class Pool:
    """Draws names, values and sentences, from the training pools or from the reserved ones.

    Args:
        rng: the only source of randomness.
        unseen: draw from what training never sees.
        invented: share of names and words that are built from syllables and word halves. Training
            needs them: a model that has to copy what no list holds learns to copy.
    """

    rng: random.Random
    unseen: bool = False
    invented: float = 0.0

    def name(self) -> str:
        """A given name."""
        if self.rng.random() < self.invented:
            return self._syllables(self.rng.choice((2, 2, 3))).capitalize()
        return self.rng.choice(ph.part(ph.GIVEN_NAMES, self.unseen))

    def owner(self) -> tuple[str, str]:
        """``(possessive, name)`` of whom a fact is about; the name may be empty."""
        draw = self.rng.random()
        if draw < 0.06:
            return "my", ""
        if draw < 0.09:
            return "our", ""
        if draw < 0.15:
            return "the", ""
        if draw < 0.25:
            relation = self.rng.choice(ph.RELATIONS)
            return f"my {relation}'s", f"my {relation}"
        name = self.name()
        return f"{name}'s", name

    def attribute(self) -> tuple[str, str]:
        """``(attribute, kind)``, every kind equally often, codes twice as often."""
        kind = self.rng.choice(("code", *KINDS))
        return self.rng.choice(ph.ATTRIBUTES[kind]), kind

    def value(self, kind: str) -> str:
        """A value of that kind, as it stands in the fact and at the start of the reply."""
        makers: dict[str, Callable[[], str]] = {
            "code": self._code,
            "passkey": self._passkey,
            "person": self._person,
            "city": self._city,
            "title": self._title,
            "phrase": self._phrase,
            "date": self._date,
        }
        return makers[kind]()

    def fact(self, key: Key, value: str) -> str:
        """The user's turn that tells a fact, sometimes beside a sentence about something else."""
        return self._beside(self._fill(ph.FACTS, key, value))

    def update(self, key: Key, value: str) -> str:
        """The user's turn that replaces a value told before."""
        return self._fill(ph.UPDATES, key, value)

    def question(self, key: Key) -> str:
        """The user's turn that asks for a value."""
        return self._fill(ph.QUESTIONS, key, "")

    def ack(self) -> str:
        """The assistant's short reply to a fact; it never repeats the value."""
        return self.rng.choice(ph.ACKS)

    def chatter(self, names: list[str]) -> tuple[str, str]:
        """A user's and an assistant's turn that nobody asks about; may mention one of `names`."""
        said = [self.sentence(ph.SMALL_TALK, names) for _ in range(self.rng.choice((1, 1, 2, 3)))]
        reply = [self.sentence(ph.SMALL_REPLIES, names) for _ in range(self.rng.choice((1, 1, 2)))]
        return " ".join(said), " ".join(reply)

    def system(self) -> str:
        """The text of a system turn."""
        return self.rng.choice(ph.SYSTEMS)

    def word(self, words: tuple[str, ...]) -> str:
        """A word of the list, or two halves of words: no list to learn by heart."""
        first, second = (self.rng.choice(ph.part(words, self.unseen)) for _ in range(2))
        if self.unseen or self.rng.random() >= self.invented:
            return first
        blend = (
            first[: self.rng.randint(1, len(first))] + second[self.rng.randint(1, len(second)) :]
        )
        return first if blend in words else blend

    def sentence(self, patterns: tuple[str, ...], names: list[str]) -> str:
        """One sentence of chatter, every slot filled at random."""
        rng = self.rng
        somebody = (
            rng.choice(names) if names and rng.random() < 0.2 else f"my {rng.choice(ph.RELATIONS)}"
        )
        text = rng.choice(patterns).format(
            who=somebody,
            thing=rng.choice(ph.THINGS),
            place=rng.choice(ph.PLACES),
            did=rng.choice(ph.DEEDS),
            when=rng.choice(ph.TIMES),
            how=rng.choice(ph.MOODS),
            n=rng.randint(2, 60),
            topic=rng.choice(ph.TOPICS),
        )
        return text[0].upper() + text[1:]

    def _fill(self, patterns: tuple[tuple[str, ...], tuple[str, ...]], key: Key, value: str) -> str:
        choices = [p for p in patterns[self.unseen] if key.name or "{e}" not in p]
        quoted = f'"{value}"' if key.kind == "phrase" else value
        text = self.rng.choice(choices).format(
            p=key.owner,
            P=key.owner[0].upper() + key.owner[1:],
            a=key.attribute,
            e=key.name,
            v=quoted,
        )
        return text[0].upper() + text[1:] if not text.startswith(quoted) else text

    def _beside(self, text: str) -> str:
        draw = self.rng.random()
        if draw < 0.1:
            return f"{self.sentence(ph.SMALL_TALK, [])} {text}"
        if draw < 0.2:
            return f"{text} {self.sentence(ph.SMALL_TALK, [])}"
        return text

    def _syllables(self, count: int) -> str:
        return "".join(self.rng.choice(ph.syllables(self.unseen)) for _ in range(count))

    def _digits(self, count: int) -> str:
        while True:
            digits = "".join(str(self.rng.randint(0, 9)) for _ in range(count))
            if (
                sum(map(int, digits)) % 5 == 0
            ) == self.unseen:  # a fifth of all numbers is reserved
                return digits

    def _code(self) -> str:
        return self._digits(self.rng.choice((4, 5, 6, 6, 6, 8)))

    def _passkey(self) -> str:
        if self.rng.random() < 0.5:
            return self._digits(self.rng.choice((5, 5, 7, 9)))
        letters = "".join(self.rng.choice("ABCDEFGHKLMNPRSTUVWXYZ") for _ in range(2))
        return f"{letters}-{self._digits(3)}-{self._digits(3)}"

    def _person(self) -> str:
        if self.rng.random() < 0.3:
            return self.name()
        if self.rng.random() < self.invented:
            return f"{self.name()} {self._syllables(2).capitalize()}"
        return f"{self.name()} {self.rng.choice(ph.part(ph.SURNAMES, self.unseen))}"

    def _city(self) -> str:
        if self.rng.random() >= self.invented:
            return self.rng.choice(ph.part(ph.CITIES, self.unseen))
        stem = self._syllables(self.rng.choice((1, 2))).capitalize()
        return stem + self.rng.choice(ph.TOWN_ENDINGS)

    def _title(self) -> str:
        words = [self.word(ph.ADJECTIVES)]
        words += [self.word(ph.NOUNS) for _ in range(self.rng.choice((1, 1, 2)))]
        return " ".join(word.capitalize() for word in words)

    def _phrase(self) -> str:
        adjective, one, two = (self.word(w) for w in (ph.ADJECTIVES, ph.NOUNS, ph.NOUNS))
        return self.rng.choice(ph.PHRASE_SHAPES).format(adjective=adjective, one=one, two=two)

    def _date(self) -> str:
        months = ph.MONTHS
        while True:
            day, month = self.rng.randint(1, 28), self.rng.randrange(12)
            if ((day + month) % 5 == 0) == self.unseen:
                return f"{day} {months[month]}"


@dataclass
class Facts:
    """The keys of one dialogue, each given out once, near-duplicates being the rule.

    Args:
        pool: where names and attributes come from.
        owners: how many owners share the facts.
        attributes: how many attributes they are about.
    """

    pool: Pool
    owners: int
    attributes: int
    _used: set[tuple[str, str]] = field(default_factory=set)
    _owners: list[tuple[str, str]] = field(default_factory=list)
    _attributes: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._owners = [self.pool.owner() for _ in range(self.owners)]
        self._attributes = [self.pool.attribute() for _ in range(self.attributes)]

    @property
    def names(self) -> list[str]:
        """Names that chatter may mention."""
        return [name for _, name in self._owners if name]

    def new_key(self) -> Key:
        """A key not given out before; more owners and attributes are drawn when needed."""
        while True:
            for _ in range(20):
                owner, attribute = (
                    self.pool.rng.choice(self._owners),
                    self.pool.rng.choice(self._attributes),
                )
                if (owner[0], attribute[0]) not in self._used:
                    self._used.add((owner[0], attribute[0]))
                    return Key(*owner, *attribute)
            self._owners.append(self.pool.owner())
            self._attributes.append(self.pool.attribute())


def tell(pool: Pool, key: Key, before: tuple[str, int] | None) -> tuple[str, str]:
    """The user's turn and the value it tells, other than the one before."""
    value = pool.value(key.kind)
    while before and value == before[0]:
        value = pool.value(key.kind)
    return (pool.update if before else pool.fact)(key, value), value
