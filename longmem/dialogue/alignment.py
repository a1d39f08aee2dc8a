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
    sent = [digest(message) for message in messages]
    end = past.boundary(past.n - 1) - least
    best: tuple[int, int] | None = None
    for start in range(len(held) - 1, -1, -1):
        agreed = _common(held[start:], sent)
        exchange = any(message.role == "assistant" for message in messages[:agreed])
        reaches = agreed > 1 and exchange and start + agreed >= end
        if reaches and (best is None or agreed > best[1]):
            best = least + start, agreed
    return best


def agreement(past: Past, start: int, messages: Sequence[Message]) -> int:
    """How many messages of the list agree with the session's from `start` on."""
    held = past.messages(start, start + len(messages))
    return _common([digest(message) for message in held], [digest(each) for each in messages])


def _common(held: Sequence[bytes], sent: Sequence[bytes]) -> int:
    agreed = 0
    while agreed < min(len(held), len(sent)) and held[agreed] == sent[agreed]:
        agreed += 1
    return agreed
