"""The forms in which users may hand over turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longmem.errors import InputError
from longmem.types import Turn

TurnLike = Turn | tuple[str, str] | Mapping[str, Any]
"""A `Turn`, a (role, text) pair, or a mapping with "role" and "content" (or "text")."""


def as_pairs(role_or_turns: str | Sequence[TurnLike], text: str | None) -> list[tuple[str, str]]:
    """(role, text) pairs of a role and a text, or of a list of turns.

    Raises:
        InputError: something in it is no turn.
    """
    if isinstance(role_or_turns, str):
        if text is None:
            raise InputError('add(role, text) needs a text, as in add("user", "Hello")')
        return [(role_or_turns, text)]
    return [_as_pair(turn) for turn in role_or_turns]


def _as_pair(turn: TurnLike) -> tuple[str, str]:
    if isinstance(turn, Turn):
        return turn.role, turn.text
    if isinstance(turn, Mapping):
        role, text = turn.get("role"), turn.get("content", turn.get("text"))
    elif isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2:
        role, text = turn
    else:
        role = text = None
    if not isinstance(role, str) or not isinstance(text, str):
        raise InputError(
            f"a turn is a role and a text, not {turn!r}; give for instance ('user', 'Hi')"
        )
    return role, text
