"""Telling a session a long conversation, a few hundred turns to a commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TypeVar

from longmem.engine import Engine
from longmem.nano.dialogue import Dialogue, make_dialogue
from longmem.session import Session

TURNS_PER_COMMIT = 512

Turns = Sequence[tuple[str, str]]
Told = Callable[[int], None]
"""Called with the number of tokens read so far."""
_Item = TypeVar("_Item")


def turn_tokens(engine: Engine) -> Callable[[str], int]:
    """A function that counts the tokens a text takes as a turn, template pieces included."""
    frame = len(engine.chat.turn_ids("user", "x", previous="assistant")) - 1
    return lambda text: frame + len(engine.tokenizer(text, add_special_tokens=False)["input_ids"])


def dialogue(engine: Engine, seed: int, tokens: int, unseen: bool = False) -> Dialogue:
    """A day of chat of about `tokens` tokens with 2 facts per 1,000."""
    return make_dialogue(seed, tokens, turn_tokens(engine), unseen=unseen)


def tell(session: Session, turns: Turns, progress: Told | None = None) -> list[int]:
    """Let the session read the turns.

    Args:
        progress: called with the number of tokens read so far.

    Returns:
        The token position behind each turn, from the first of `turns`.
    """
    lengths: list[int] = []
    for at in range(0, len(turns), TURNS_PER_COMMIT):
        batch = turns[at : at + TURNS_PER_COMMIT]
        report = _from(sum(lengths), progress) if progress else None
        lengths += [turn.tokens for turn in session.add(batch, progress=report)]
    return list(accumulate(lengths))


def _from(start: int, progress: Told) -> Callable[[int, int], None]:
    """The progress of one commit as progress of all of them."""
    return lambda done, total: progress(start + done)


def spread(items: Sequence[_Item], most: int) -> list[_Item]:
    """At most `most` of the items, evenly from first to last; 0 means all."""
    last = len(items) - 1
    if most == 0 or most > last:
        return list(items)
    return [items[round(i * last / max(most - 1, 1))] for i in range(most)]
