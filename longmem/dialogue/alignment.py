"""Find where a list of messages whose head was trimmed begins in a session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from longmem.dialogue.chain import digest
from longmem.dialogue.message import Message

if TYPE_CHECKING:
    from longmem.dialogue.past import Past

_SPARE = 16
"""Messages looked at beyond twice the list's own, for what the session holds behind it."""
_CHUNK = 64
"""Turns read at once."""


def by_ids(
    past: Past, messages: Sequence[Message], recent: int | None = None
) -> tuple[int, int] | None:
    """(message of the session that has the first one's id, how many agree from there).

    Args:
        past: the session's messages.
        messages: the list.
        recent: look only at so many of the last messages, and some more; None: at all, from the last.
    """
    wanted = messages[0].id
    if wanted is None:
        return None
    least = 0 if recent is None else max(0, past.n - 2 * recent - _SPARE)
    for stop in range(past.n, least, -_CHUNK):
        start = max(least, stop - _CHUNK)
        for i, message in enumerate(past.messages(start, stop)):
            if message.id == wanted:
                return start + i, agreement(past, start + i, messages)
    return None


def by_tail(past: Past, messages: Sequence[Message]) -> tuple[int, int] | None:
    """(message of the session, how many agree from there) where the longest run of the list's first
    messages stands at the session's end, word for word, or right before its last exchange, which is
    said anew then. The run is an exchange at least."""
    least = max(0, past.n - 2 * len(messages) - _SPARE)
    held = [digest(message) for message in past.messages(least, past.n)]
    replies = (i for i, message in enumerate(messages) if message.role == "assistant")
    shortest = max(2, next(replies, len(messages)) + 1)
    end = past.boundary(past.n - 1) - least
    best: tuple[int, int] | None = None
    for start, agreed in enumerate(agreements(held, [digest(message) for message in messages])):
        reaches = agreed >= shortest and start + agreed >= end
        if reaches and (best is None or agreed >= best[1]):  # of equal ones the last
            best = least + start, agreed
    return best


def agreement(past: Past, start: int, messages: Sequence[Message]) -> int:
    """How many messages of the list agree with the session's from `start` on."""
    held = past.messages(start, start + len(messages))
    return _common([digest(message) for message in held], [digest(each) for each in messages])


def agreements(held: Sequence[bytes], sent: Sequence[bytes]) -> list[int]:
    """From each place of `held` on, how many agree with `sent` from its first on.

    The Z function: what agrees with the beginning of `sent` looks inside as that beginning does, so
    that no element is compared with another one twice, in however many ways the two overlap.
    """
    both = [*sent, b"", *held]  # no digest is empty: none agrees beyond the end of `sent`
    agreed = [0] * len(both)
    start = stop = 0  # of the stretch, as far to the right as any, that agrees with the beginning
    for i in range(1, len(both)):
        n = min(stop - i, agreed[i - start]) if i < stop else 0
        while i + n < len(both) and both[n] == both[i + n]:
            n += 1
        agreed[i] = n
        if i + n > stop:
            start, stop = i, i + n
    return agreed[len(sent) + 1 :]


def _common(held: Sequence[bytes], sent: Sequence[bytes]) -> int:
    agreed = 0
    while agreed < min(len(held), len(sent)) and held[agreed] == sent[agreed]:
        agreed += 1
    return agreed
