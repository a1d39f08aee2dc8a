"""From the blocks that look-ups chose to the turns a person can read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from longmem.history import History, as_turn
from longmem.memory import Choice, SessionMemory
from longmem.types import Recalled


def recalled(
    choices: Iterable[Choice], memory: SessionMemory, history: History
) -> tuple[Recalled, ...]:
    """The turns whose blocks were looked up, the best first.

    A block's share of a look-up counts for every turn it holds a part of; a turn's score is the
    mean over all look-ups of the reply.
    """
    votes: dict[int, float] = defaultdict(float)
    lookups: dict[int, int] = defaultdict(int)
    total = 0
    for choice in choices:
        total += 1
        for block, share in zip(choice.blocks, choice.shares, strict=True):
            votes[block] += share
            lookups[block] += 1
    if not votes:
        return ()
    return _by_turn(votes, lookups, total, memory, history)


def _by_turn(
    votes: dict[int, float],
    lookups: dict[int, int],
    total: int,
    memory: SessionMemory,
    history: History,
) -> tuple[Recalled, ...]:
    blocks = sorted(votes)
    ends = [p for b in blocks for p in _ends(memory.table.span(b))]
    holders = history.turns_at(ends)
    score: dict[int, float] = defaultdict(float)
    count: dict[int, int] = defaultdict(int)
    for i, block in enumerate(blocks):
        for index in range(holders[2 * i].index, holders[2 * i + 1].index + 1):
            score[index] += votes[block]
            count[index] += lookups[block]
    best = sorted(score, key=lambda index: (-score[index], index))
    turns = {t.index: t for t in holders}
    for index in best:
        if index not in turns:
            turns[index] = history.turns(index, index + 1)[0]
    return tuple(
        Recalled(as_turn(turns[i]), min(1.0, score[i] / total), count[i]) for i in best
    )


def _ends(span: tuple[int, int]) -> tuple[int, int]:
    """First and last position of a block."""
    return span[0], span[1] - 1
