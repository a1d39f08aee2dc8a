"""Compare the messages a caller sends with those a session holds, and say what to do about it.

committed      a  ok  b  ok            a  ok  b  ok            a  ok  b  ok
sent           a  ok  b  ok  c         a  ok  B                      b  ok  c
keep                      4            2                                4
read                         c               B  (diverges)              c   (its head was trimmed)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from longmem.dialogue.alignment import by_ids, by_tail
from longmem.dialogue.chain import chain
from longmem.dialogue.message import Message
from longmem.errors import InputError

if TYPE_CHECKING:
    from longmem.dialogue.past import Past
    from longmem.dialogue.request import Scope


@dataclass(frozen=True)
class Plan:
    """What to do with a session for a list of messages.

    Args:
        keep: its messages that stay, from the first; a commit ends behind them.
        messages: what to read behind them, some of them for the second time where the list diverges
            in the middle of a commit.
        diverges: the session went on otherwise behind them.
        repeats: the messages end where the session's last reply begins: it may be asked for again.
        agreed: its messages, from the first, that a whole list goes along with; `keep` or more.
        unknown: messages of the list behind those.
    """

    keep: int
    messages: tuple[Message, ...]
    diverges: bool
    repeats: bool
    agreed: int = 0
    unknown: int = 0


def reconcile(
    past: Past, messages: Sequence[Message], scope: Scope = "auto", at: int | None = None
) -> Plan:
    """How a session has to change so that it ends with exactly these messages.

    Args:
        past: the session's messages.
        messages: new ones or the whole list, without system prompt; at least one.
        scope, at: see `Request`.

    Raises:
        InputError: `at` is no turn of the session.

    Cost: a whole list of n messages against a session of m reads O(log m) turns if they carry their
    chain values; a trimmed one O(n) more, all only where its first message is known by id and old.
    """
    if at is not None or is_new(past, messages, scope):
        keep = past.n if at is None else _place(past, at)
        return _plan(past, keep, messages, _repeats_new(past, messages, at))
    start, agreed = locate(past, messages)
    known = min(agreed, len(messages) - 1)  # the last is always read: it is replied to
    repeats = agreed == len(messages) and _is_last_reply(past, start + agreed)
    plan = _plan(past, start + known, messages[known:], repeats)
    return replace(plan, agreed=start + agreed, unknown=len(messages) - agreed)


def is_new(past: Past, messages: Sequence[Message], scope: Scope) -> bool:
    """Whether these messages follow what was said, rather than being all of it."""
    if scope != "auto":
        return scope == "new"
    if any(message.role == "assistant" for message in messages):
        return False
    return by_ids(past, messages[:1], recent=len(messages)) is None


def locate(past: Past, messages: Sequence[Message]) -> tuple[int, int]:
    """Where a whole list stands in the session: (message it begins at, how many agree from there).

    It begins at 0, unless its head was trimmed: then its first message is found by id, or the list
    goes on from the session's last messages word for word.
    """
    agreed = shared_prefix(past, messages)
    if agreed == past.n or (messages[0].id is not None and past.message(0).id == messages[0].id):
        return 0, agreed
    exchange = any(message.role == "assistant" for message in messages[:agreed])
    if found := by_ids(past, messages, recent=len(messages) if exchange else None):
        return found
    return (0, agreed) if exchange else by_tail(past, messages) or (0, agreed)


def shared_prefix(past: Past, messages: Sequence[Message]) -> int:
    """How many messages session and list have in common, counted from the first."""
    values = chain(messages)
    low, high = 0, min(past.n, len(messages))
    if high and past.chain(high) == values[high]:
        return high
    step = 1
    while high - step > low:  # where lists diverge, they mostly do so near their end
        if past.chain(high - step) == values[high - step]:
            low = high - step
            break
        high, step = high - step, 2 * step
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if past.chain(middle) == values[middle] else (low, middle)
    return low


def _place(past: Past, at: int) -> int:
    """Messages up to turn `at`."""
    last = past.offset + past.n - 1
    if not -1 <= at <= last:
        raise InputError(
            f"the session has no turn {at} to go on from; its last one is {last}, -1 is its start"
        )
    return max(at + 1 - past.offset, 0)


def _plan(past: Past, keep: int, messages: Sequence[Message], repeats: bool) -> Plan:
    if keep == past.n:
        return Plan(keep, tuple(messages), False, repeats)
    end = past.boundary(keep)
    again = past.messages(end, keep)
    return Plan(end, (*again, *messages), True, repeats)


def _repeats_new(past: Past, messages: Sequence[Message], at: int | None) -> bool:
    """Whether the last exchange read these very messages, behind the turn that `at` names."""
    start = past.n - 1 - len(messages)
    if start < 0 or not _is_last_reply(past, past.n - 1):
        return False
    if at is not None and _place(past, at) != start:
        return False
    return past.chain(past.n - 1) == chain(messages, past.chain(start))[-1]


def _is_last_reply(past: Past, i: int) -> bool:
    return 0 <= i == past.n - 1 and past.message(i).role == "assistant"
