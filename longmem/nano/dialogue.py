"""Seeded chat with facts, chatter and questions: nano's training data, the demo's and the bench's.

A fact binds a value to a key, and a key is an owner and an attribute ("Kelmar's locker code").
Names and values are built at random (syllables, digits, word combinations), so the pool is
practically without end. With ``unseen=True`` names, values and phrasings come from reserved pools
that training never draws from.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from longmem.nano import phrases as ph

KINDS = tuple(ph.ATTRIBUTES)
"""The kinds of fact: code, passkey, person, city, title, phrase, date."""


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


@dataclass(frozen=True)
class Line:
    """One turn as the trainer needs it: `act` is what it does, `key` which fact it is about."""

    role: str
    text: str
    act: str
    key: int = -1
    value: str = ""


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
    """

    rng: random.Random
    unseen: bool = False

    def name(self) -> str:
        """A given name: mostly two or three syllables, sometimes a real one."""
        if self.rng.random() < 0.2:
            return self.rng.choice(ph.part(ph.GIVEN_NAMES, self.unseen))
        return self._syllables(self.rng.choice((2, 2, 3))).capitalize()

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
        return (
            f"{self.name()} {self._syllables(2).capitalize()}"
            if self.rng.random() < 0.7
            else self.name()
        )

    def _city(self) -> str:
        if self.rng.random() < 0.2:
            return self.rng.choice(ph.part(ph.CITIES, self.unseen))
        return self._syllables(self.rng.choice((1, 2))).capitalize() + self.rng.choice(
            ph.TOWN_ENDINGS
        )

    def _title(self) -> str:
        words = [self._word(ph.ADJECTIVES)]
        words += [self._word(ph.NOUNS) for _ in range(self.rng.choice((1, 1, 2)))]
        return " ".join(word.capitalize() for word in words)

    def _phrase(self) -> str:
        adjective, one, two = (self._word(w) for w in (ph.ADJECTIVES, ph.NOUNS, ph.NOUNS))
        return self.rng.choice(ph.PHRASE_SHAPES).format(adjective=adjective, one=one, two=two)

    def _word(self, words: tuple[str, ...]) -> str:
        """A word of the list or, in training, often two halves of words: no list to learn by heart."""
        first, second = (self.rng.choice(ph.part(words, self.unseen)) for _ in range(2))
        if self.unseen or self.rng.random() < 0.4:
            return first
        blend = first[: self.rng.randint(1, len(first))] + second[self.rng.randint(1, len(second)) :]
        return first if blend in words else blend

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
            text, value = _tell(pool, key, values.get(key))
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


def _tell(pool: Pool, key: Key, before: tuple[str, int] | None) -> tuple[str, str]:
    """The user's turn and the value it tells, other than the one before."""
    value = pool.value(key.kind)
    while before and value == before[0]:
        value = pool.value(key.kind)
    return (pool.update if before else pool.fact)(key, value), value


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
    facts = shared or Facts(Pool(rng), owners=rng.randint(1, 8), attributes=rng.randint(2, 8))
    pool = facts.pool
    share_chatter, share_updates = (
        rng.choice((0.0, 0.0, 0.1, 0.3, 0.6)),
        rng.choice((0.0, 0.15, 0.4)),
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
                text, value = _tell(pool, key, (before, 0))
                told[index] = (key, value)
            else:
                index, key = len(told), facts.new_key()
                text, value = _tell(pool, key, None)
                told.append((key, value))
                open_keys.append(index)
            act = "generic fact" if key.generic and not shared else "fact"
            yield Line("user", text, act, index, value)
            yield Line("assistant", pool.ack(), "ack")
