"""Semantic blocks: where they end, and which neighbours a look-up adds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Literal

Boundaries = Literal["fixed", "turn", "surprise"]


class BlockTable:
    """Absolute positions at which blocks end; the same for all layers of a session.

    Block i covers positions ``edges[i] .. edges[i + 1]``; ``edges[0]`` is the end of the initial
    tokens. A block is closed, and a candidate of look-ups, once n_local newer tokens exist.

    Args:
        n_init: initial tokens of the session.
        block_size: most tokens in a block.
        boundaries: where blocks end; see MemoryConfig.block_boundaries. Under "surprise" all edges
            come through `append`.
        n_local: window in tokens.
        min_block: fewest tokens of a block that ends at a turn.
    """

    def __init__(
        self,
        n_init: int,
        block_size: int,
        boundaries: Boundaries,
        n_local: int,
        min_block: int = 1,
    ) -> None:
        self.n_init = n_init
        self.edges = [n_init]
        self._block_size = block_size
        self._boundaries = boundaries
        self._n_local = n_local
        self._min_block = min_block

    def begin_turn(self, position: int) -> None:
        """A turn starts at `position`."""
        self.extend(position)
        if self._boundaries == "turn" and position - self.edges[-1] >= self._min_block:
            self.edges.append(position)

    def extend(self, position: int) -> None:
        """Tokens up to `position` are known: end the blocks that are full."""
        if self._boundaries == "surprise":
            return
        while self.edges[-1] + self._block_size <= position:
            self.edges.append(self.edges[-1] + self._block_size)

    def append(self, edges: Iterable[int]) -> None:
        """Add edges that became final elsewhere (`SurpriseBoundaries`), in order."""
        self.edges.extend(edges)

    def closed(self, position: int) -> int:
        """How many blocks are closed when `position` tokens exist; -1 while not even the initial
        tokens have left the window."""
        return bisect_right(self.edges, position - self._n_local) - 1

    def span(self, block: int) -> tuple[int, int]:
        """Absolute positions (start, stop) of a block."""
        return self.edges[block], self.edges[block + 1]

    def truncate(self, n_edges: int) -> None:
        """Forget the edges beyond the first `n_edges`."""
        del self.edges[n_edges:]


def with_neighbours(best: Sequence[int], contiguity: int, first: int, n: int) -> list[int]:
    """The blocks of a look-up and up to `contiguity` neighbours of theirs.

    Neighbours are the blocks just before and just after a chosen one, of the best block first. EM-LLM
    (arXiv 2407.09450, section 3.3) keeps them in a queue from which a neighbour leaves when newer
    ones push it out, over many look-ups; here each look-up stands alone, so that what is attended
    to depends on its query and not on those before it.

    Args:
        best: chosen blocks in order of score, best first.
        contiguity: most neighbours to add.
        first, n: candidates are the blocks ``first .. n - 1``.

    Returns:
        `best`, then the neighbours.
    """
    chosen = dict.fromkeys(best)
    for block in best:
        for neighbour in (block - 1, block + 1):
            if len(chosen) == len(best) + contiguity:
                return list(chosen)
            if first <= neighbour < n:
                chosen.setdefault(neighbour)
    return list(chosen)
