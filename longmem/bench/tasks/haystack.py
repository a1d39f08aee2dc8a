"""Needles among chatter: the turns of a conversation, and where in it each needle came to stand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from longmem.bench.tasks.task import CountTokens, Turns
from longmem.nano.pool import Pool


@dataclass(frozen=True)
class Haystack:
    """Turns with needles in them.

    Args:
        turns: ``(role, text)``.
        turn_of: per needle, in the order given, the index of its turn.
        depth_of: per needle, the share of all tokens that stand before it, 0 .. 1.
    """

    turns: Turns
    turn_of: list[int]
    depth_of: list[float]


def hide(
    rng: random.Random,
    needles: Sequence[tuple[float, str]],
    tokens: int,
    count_tokens: CountTokens,
) -> Haystack:
    """Spread needles over chatter.

    Args:
        needles: ``(depth, text)``, depth 0 .. 1; each becomes a user's turn of its own.
        tokens: length of all turns; needles longer than that are all told even so.
    """
    pool = Pool(rng)
    room = tokens - sum(count_tokens(text) for _, text in needles)  # for chatter
    waiting = sorted(range(len(needles)), key=lambda i: needles[i][0], reverse=True)
    turns: Turns = []
    turn_of, begin_of = [0] * len(needles), [0] * len(needles)
    chatted, length = 0, 0
    while waiting or chatted < room:
        if waiting and (chatted >= room or needles[waiting[-1]][0] * room <= chatted):
            needle = waiting.pop()
            turn_of[needle], begin_of[needle] = len(turns), length
            said = [("user", needles[needle][1])]
        else:
            user, assistant = pool.chatter([])
            said = [("user", user), ("assistant", assistant)]
            chatted += count_tokens(user) + count_tokens(assistant)
        turns += said
        length += sum(count_tokens(text) for _, text in said)
    return Haystack(turns, turn_of, [begin / length for begin in begin_of])
