"""Words and sentence patterns of the dialogues (phrases.json); part of each is reserved."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

_DATA = json.loads((Path(__file__).parent / "phrases.json").read_text(encoding="utf-8"))


def part(words: tuple[str, ...], unseen: bool) -> tuple[str, ...]:
    """Every fifth word of a list is reserved; this gives the reserved ones or the others."""
    return tuple(word for index, word in enumerate(words) if (index % 5 == 4) == unseen)


@lru_cache(maxsize=2)
def syllables(unseen: bool) -> tuple[str, ...]:
    """Onset, vowel and coda combined; about a seventh of those with a coda is reserved."""
    return tuple(
        onset + vowel + coda
        for i, onset in enumerate(ONSETS)
        for j, vowel in enumerate(VOWELS)
        for k, coda in enumerate(CODAS)
        if (coda != "" and (3 * i + 5 * j + k) % 7 == 0) == unseen
    )


def _words(name: str) -> tuple[str, ...]:
    return tuple(_DATA[name])


def _patterns(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Patterns that training draws, and reserved ones."""
    return tuple(_DATA[name]["trained"]), tuple(_DATA[name]["reserved"])


ONSETS = _words("onsets")
VOWELS = _words("vowels")
CODAS = _words("codas")
TOWN_ENDINGS = _words("town_endings")
GIVEN_NAMES = _words("given_names")
SURNAMES = _words("surnames")
CITIES = _words("cities")
ADJECTIVES = _words("adjectives")
NOUNS = _words("nouns")
PHRASE_SHAPES = _words("phrase_shapes")
MONTHS = _words("months")
RELATIONS = _words("relations")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    kind: tuple(names) for kind, names in _DATA["attributes"].items()
}
FACTS = _patterns("facts")
UPDATES = _patterns("updates")
QUESTIONS = _patterns("questions")
ACKS = _words("acks")
SYSTEMS = _words("systems")
THINGS = _words("things")
PLACES = _words("places")
DEEDS = _words("deeds")
TIMES = _words("times")
MOODS = _words("moods")
TOPICS = _words("topics")
SMALL_TALK = _words("small_talk")
SMALL_REPLIES = _words("small_replies")
