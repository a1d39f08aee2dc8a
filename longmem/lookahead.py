"""What the end of a text may be the beginning of."""

from __future__ import annotations


def held_back(text: str, needles: tuple[str, ...]) -> int:
    """Number of characters at the end of `text` that may be the beginning of one of `needles`."""
    longest = min(len(text), max((len(needle) for needle in needles), default=1) - 1)
    for length in range(longest, 0, -1):
        if any(needle.startswith(text[-length:]) for needle in needles):
            return length
    return 0
