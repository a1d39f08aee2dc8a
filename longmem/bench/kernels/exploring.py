"""A search for a good launch around a given one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from longmem.ops.kernels import Launch

BETTER = 0.98
"""A launch has to cost less than this share of the best so far: less is within what timings vary by."""
_ROUNDS = 4
_WARPS = (1, 2, 4, 8, 16)
_STAGES = range(1, 7)


def explore(start: Launch, cost: Callable[[Launch], float]) -> tuple[Launch, float]:
    """Go to the cheapest neighbour until none is cheaper.

    Args:
        start: where to begin.
        cost: of a launch; infinite where it cannot be launched or is wrong.

    Returns:
        The best launch that was met, and its cost.
    """
    best, least, known = start, cost(start), [start]
    for _ in range(_ROUNDS):
        found = [each for each in neighbours(best) if each not in known]
        known += found
        costs = [(cost(each), i) for i, each in enumerate(found)]
        if not costs or min(costs)[0] >= BETTER * least:
            break
        least, i = min(costs)
        best = found[i]
    return best, least


def neighbours(how: Launch) -> Iterator[Launch]:
    """One tile size or number of splits halved or doubled, or the number of warps; one stage more or
    less."""
    for name, value in how.blocks.items():
        for other in (value // 2, value * 2):
            if other:
                yield replace(how, blocks={**how.blocks, name: other})
    for warps in (how.num_warps // 2, how.num_warps * 2):
        if warps in _WARPS:
            yield replace(how, num_warps=warps)
    for stages in (how.num_stages - 1, how.num_stages + 1):
        if stages in _STAGES:
            yield replace(how, num_stages=stages)
