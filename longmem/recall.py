"""From the blocks that look-ups chose to the turns a person can read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from longmem.history import History, as_turn
from longmem.memory import Choice, SessionMemory
from longmem.types import Recalled

_MOST_BLOCKS = 32


def recalled(
    choices: Iterable[Choice], memory: SessionMemory, history: History, n_tokens: int
) -> tuple[Recalled, ...]:
    """The turns whose blocks were looked up, the best first.

    Blocks of the exchange under way, from position `n_tokens` on, are left out: what was said a
    moment ago is not recalled.

    A block's share of a look-up counts for every turn it holds a part of; a turn's score is the
    mean over all look-ups of the reply. The 32 best blocks are taken.
    """
    votes: dict[int, float] = defaultdict(float)
    lookups: dict[int, int] = defaultdict(int)
    total = 0
    for choice in choices:
        total += 1
        for block, share in zip(choice.blocks, choice.shares, strict=True):
            if memory.table.span(block)[0] < n_tokens:
                votes[block] += share
                lookups[block] += 1
    if not votes:
        return ()
    best = sorted(votes, key=lambda block: -votes[block])[:_MOST_BLOCKS]
    spans = {block: _ends(memory.table.span(block), n_tokens) for block in sorted(best)}
    return _by_turn(votes, lookups, total, spans, history)


def _by_turn(
    votes: dict[int, float],
    lookups: dict[int, int],
    total: int,
    spans: dict[int, tuple[int, int]],
    history: History,
) -> tuple[Recalled, ...]:
    blocks = list(spans)
    ends = [position for span in spans.values() for position in span]
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
    return tuple(Recalled(as_turn(turns[i]), min(1.0, score[i] / total), count[i]) for i in best)


def _ends(span: tuple[int, int], n_tokens: int) -> tuple[int, int]:
    """First and last committed position of a block."""
    return span[0], min(span[1], n_tokens) - 1
