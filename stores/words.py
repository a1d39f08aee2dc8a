"""Ranking turns by the words they share with a query, the same in every store.

BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) over one session's
turns. SQLite's own would count the words of all sessions, so that a score would tell what others
have written.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping

K1 = 1.2
B = 0.75
QUERY_WORDS = 64
"""Distinct words of a query that count."""
SNIPPET = 160
"""Characters of a snippet."""

_WORD = re.compile(r"[^\W_]+")


def query_words(query: str) -> list[str]:
    """The words to look for, each once, as they are written."""
    return list(dict.fromkeys(_WORD.findall(query)))[:QUERY_WORDS]


def ranked(
    query: str, texts: Mapping[int, str], n_turns: int, k: int
) -> list[tuple[int, float, str]]:
    """The `k` best of some turns: (index, score, snippet); of equal ones the newest first.

    Args:
        texts: by index, of the turns that hold one of the words; others are ignored.
        n_turns: turns of the whole session.
    """
    wanted = {_folded(word) for word in query_words(query)}
    words = {index: [_folded(word) for word in _WORD.findall(t)] for index, t in texts.items()}
    hits = {i: Counter(w for w in found if w in wanted) for i, found in words.items()}
    hits = {index: counts for index, counts in hits.items() if counts}
    in_turns = Counter(word for counts in hits.values() for word in counts)
    mean = sum(len(words[index]) for index in hits) / max(len(hits), 1)
    scores = {
        index: sum(
            _idf(n_turns, in_turns[word]) * _saturated(count, len(words[index]) / mean)
            for word, count in counts.items()
        )
        for index, counts in hits.items()
    }
    best = sorted(scores, key=lambda index: (-scores[index], -index))[: max(k, 0)]
    return [(index, scores[index], snippet(texts[index], wanted)) for index in best]


def snippet(text: str, wanted: set[str]) -> str:
    """A piece of `text` around the first of the `wanted` (folded) words; "…" marks a cut."""
    at = next((m.start() for m in _WORD.finditer(text) if _folded(m.group()) in wanted), 0)
    start = max(0, min(at - SNIPPET // 4, len(text) - SNIPPET))
    piece = text[start : start + SNIPPET].strip()
    return f"{'…' if start else ''}{piece}{'…' if start + SNIPPET < len(text) else ''}"


def _folded(word: str) -> str:
    """Lower case and without marks, about as SQLite's unicode61 tokenizer sees it."""
    if word.isascii():
        return word.lower()
    decomposed = unicodedata.normalize("NFKD", word.lower())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def _idf(n_turns: int, holding: int) -> float:
    return math.log((max(n_turns, holding) + 1) / (holding + 0.5))


def _saturated(count: int, length: float) -> float:
    """How much `count` occurrences are worth in a turn of `length` times the mean length."""
    return count * (K1 + 1) / (count + K1 * (1 - B + B * length))
