"""Keys and values drawn at random: words, numbers, UUIDs; no list of them repeats itself."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable

from longmem.errors import ConfigError
from longmem.nano import phrases as ph

_TRIES = 50


def distinct(draw: Callable[[], str], amount: int) -> list[str]:
    """`amount` different strings.

    Raises:
        ConfigError: 50 draws per string did not give that many.
    """
    found: dict[str, None] = {}
    for _ in range(_TRIES * amount):
        if len(found) == amount:
            break
        found[draw()] = None
    if len(found) < amount:
        raise ConfigError(
            f"this task needs {amount:,} different keys or values, and drawing them gave {len(found):,}; "
            "take fewer --tokens, or a task with fewer keys"
        )
    return list(found)


def names(rng: random.Random, amount: int) -> list[str]:
    """`amount` different keys of words; with a number, too, where there are not words for all."""
    pairs = len(ph.part(ph.ADJECTIVES, unseen=False)) * len(ph.part(ph.NOUNS, unseen=False))
    if 2 * amount <= pairs:
        return distinct(lambda: words(rng), amount)
    highest = 10 * amount // pairs + 1
    return distinct(lambda: f"{words(rng)}-{rng.randint(1, highest)}", amount)


def number(rng: random.Random, digits: int) -> str:
    """A decimal number that does not start with 0."""
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def words(rng: random.Random) -> str:
    """An adjective and a noun with a hyphen, as RULER's and LongChat's keys are."""
    adjective = rng.choice(ph.part(ph.ADJECTIVES, unseen=False))
    noun = rng.choice(ph.part(ph.NOUNS, unseen=False))
    return f"{adjective}-{noun}"


def uuid4(rng: random.Random) -> str:
    """A random UUID of version 4."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def first_number(text: str) -> str:
    """The first run of digits in `text`; empty if there is none."""
    match = re.search(r"\d+", text)
    return match.group() if match else ""


def share_contained(answers: tuple[str, ...], reply: str) -> float:
    """Share of the answers that stand in the reply, ignoring case (RULER's string match)."""
    return sum(answer.casefold() in reply.casefold() for answer in answers) / len(answers)
