"""From the blocks that look-ups chose to the turns a person can read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from longmem.history import History, as_turn
from longmem.memory import Choice, SessionMemory
from longmem.types import Recalled

_MOST_BLOCKS = 32


class Tally:
    """How often blocks were looked up, and with what share of the votes; the 32 best are kept.

    Blocks of the exchange under way, from position `n_tokens` on, are left out: what was said a
    moment ago is not recalled.

    Args:
        choices: the outcome of every look-up.
        memory: whose blocks they are.
        n_tokens: committed tokens.
    """

    def __init__(self, choices: Iterable[Choice], memory: SessionMemory, n_tokens: int) -> None:
        self.lookups = 0
        self.votes: dict[int, float] = defaultdict(float)
        self.chosen: dict[int, int] = defaultdict(int)
        for choice in choices:
            self.lookups += 1
            for block, share in zip(choice.blocks, choice.shares, strict=True):
                if memory.table.span(block)[0] < n_tokens:
                    self.votes[block] += share
                    self.chosen[block] += 1
        best = sorted(self.votes, key=lambda block: -self.votes[block])[:_MOST_BLOCKS]
        self.spans = {block: _ends(memory.table.span(block), n_tokens) for block in sorted(best)}
        """First and last committed position of each block kept."""

    def best_block(self, start: int, stop: int) -> tuple[int, int]:
        """First and last position of the block with most votes that holds one of the positions
        ``start .. stop``; those themselves if none does."""
        inside = [b for b, (first, last) in self.spans.items() if first < stop and last >= start]
        if not inside:
            return start, stop - 1
        return self.spans[max(inside, key=lambda block: self.votes[block])]


def recalled(
    choices: Iterable[Choice], memory: SessionMemory, history: History, n_tokens: int
) -> tuple[Recalled, ...]:
    """The turns whose blocks were looked up for a reply, the best first; see `Tally`."""
    return recalled_by(Tally(choices, memory, n_tokens), history)


def recalled_by(tally: Tally, history: History) -> tuple[Recalled, ...]:
    """The turns of a tally, the best first.

    A block's share of a look-up counts for every turn it holds a part of; a turn's score is the
    mean over all look-ups.
    """
    if not tally.spans:
        return ()
    holders = history.turns_at([position for span in tally.spans.values() for position in span])
    score: dict[int, float] = defaultdict(float)
    count: dict[int, int] = defaultdict(int)
    for i, block in enumerate(tally.spans):
        for index in range(holders[2 * i].index, holders[2 * i + 1].index + 1):
            score[index] += tally.votes[block]
            count[index] += tally.chosen[block]
    best = sorted(score, key=lambda index: (-score[index], index))
    turns = {t.index: t for t in holders}
    for index in best:
        if index not in turns:
            turns[index] = history.turns(index, index + 1)[0]
    return tuple(
        Recalled(as_turn(turns[i]), min(1.0, score[i] / tally.lookups), count[i]) for i in best
    )


def _ends(span: tuple[int, int], n_tokens: int) -> tuple[int, int]:
    """First and last committed position of a block."""
    return span[0], min(span[1], n_tokens) - 1
