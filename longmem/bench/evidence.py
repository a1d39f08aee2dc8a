"""Whether look-ups chose the blocks that hold the evidence: block recall."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from longmem.config import MemoryConfig
from longmem.memory import Choice, SessionMemory


def chooses(config: MemoryConfig) -> bool:
    """Whether a memory chooses among its blocks: it attends to some, and not to all."""
    return config.topk > 0 and config.lookup != "all"


def found_share(
    choices: Iterable[Choice],
    evidence: Sequence[int],
    ends: Sequence[int],
    memory: SessionMemory,
) -> float | None:
    """Share of the evidence that any look-up of a reply chose, in any layer.

    A turn counts as found when a chosen block holds a part of it. Turns that are initial tokens, or
    not yet in closed blocks, are attended to anyway and do not count.

    Args:
        choices: the reply's look-ups.
        evidence: indices of turns.
        ends: token position behind each turn of the history.
        memory: the session's memory, as before the question.

    Returns:
        0 .. 1; None when all evidence is attended to anyway.
    """
    edges, closed = memory.table.edges, memory.n_blocks
    spans = [(ends[turn - 1] if turn else 0, ends[turn]) for turn in evidence]
    hidden = [s for s in spans if s[0] >= memory.table.n_init and closed and s[1] <= edges[closed]]
    if not hidden:
        return None
    chosen = {block for choice in choices for block in choice.blocks if block < closed}
    blocks = [memory.table.span(block) for block in chosen]
    hits = sum(any(a < stop and start < b for a, b in blocks) for start, stop in hidden)
    return hits / len(hidden)
