"""The forms in which users may hand over turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longmem.errors import InputError
from longmem.keeping import check_extra
from longmem.types import Turn

TurnLike = Turn | tuple[str, str] | Mapping[str, Any]
"""A `Turn`, a (role, text) pair, or a mapping with "role" and "content" (or "text"). A `Turn`, and a
mapping with "extra", bring the details that are kept with the new turn."""

_REPLIED_TO = ("user", "tool")


def as_turns(role_or_turns: str | Sequence[TurnLike], text: str | None) -> list[Turn]:
    """New turns of a role and a text, or of a list of turns; index, tokens and time are left out.

    Raises:
        InputError: something in it is no turn.
    """
    if isinstance(role_or_turns, str):
        if text is None:
            raise InputError('add(role, text) needs a text, as in add("user", "Hello")')
        return [Turn(role_or_turns, text)]
    given: Any = role_or_turns  # what users pass may be anything
    if not isinstance(given, Sequence):
        raise InputError(f"turns come in a list, as in [('user', 'Hi')], not as {given!r}")
    return [_as_turn(turn) for turn in given]


def asked_turns(turns: str | Sequence[TurnLike], role: str) -> list[Turn]:
    """The new turns that a reply is asked for: one text of `role`, or a list of them.

    Raises:
        InputError: something in it is no turn, or there is none.
    """
    asked = as_turns(role, turns) if isinstance(turns, str) else as_turns(turns, None)
    if not asked:
        raise InputError("a reply follows a turn, and none was given; give for instance 'Hello'")
    return asked


def check_replied_to(turns: Sequence[Turn]) -> None:
    """Refuse turns of which the last gets no reply.

    Raises:
        InputError: it is neither a user's nor a tool's.
    """
    if turns[-1].role not in _REPLIED_TO:
        raise InputError(
            f'a reply follows a "user" or "tool" turn, not {turns[-1].role!r}; use add for it'
        )


def _as_turn(turn: Any) -> Turn:
    role: Any = None
    text: Any = None
    extra: Any = {}
    if isinstance(turn, Turn):
        role, text, extra = turn.role, turn.text, turn.extra
    elif isinstance(turn, Mapping):
        role, text = turn.get("role"), turn.get("content", turn.get("text"))
        extra = turn.get("extra") or {}
    elif isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2:
        role, text = turn
    if not isinstance(role, str) or not isinstance(text, str):
        raise InputError(
            f"a turn is a role and a text, not {turn!r}; give for instance ('user', 'Hi')"
        )
    return Turn(role, text, extra=check_extra(extra))
