"""Groups of blocks: what a codec encodes together."""

from __future__ import annotations

from bisect import bisect_right

from longmem.memory.blocks import BlockTable


class BlockGroups:
    """Consecutive closed blocks, gathered until they hold `tokens` tokens; the same for all layers.

    Where groups end follows from the block table alone, so that neither cuts of the stream nor a
    resume move it.

    Args:
        table: where blocks end.
        tokens: fewest tokens of a group.
    """

    def __init__(self, table: BlockTable, tokens: int) -> None:
        self._table = table
        self._tokens = tokens
        self._ends = [0]  # first block of each group, and of the one that is not complete
        self._seen = 0  # blocks looked at

    def complete(self, closed: int) -> int:
        """How many groups are complete when `closed` blocks are closed."""
        self._extend(closed)
        return bisect_right(self._ends, closed) - 1

    def end(self, groups: int) -> int:
        """How many blocks the first `groups` groups hold."""
        return self._ends[groups]

    def of(self, block: int) -> int:
        """The number of the complete group a block is in."""
        return bisect_right(self._ends, block) - 1

    def truncate(self, n_blocks: int) -> None:
        """The blocks from `n_blocks` on are no longer closed; they may end elsewhere next time."""
        del self._ends[bisect_right(self._ends, n_blocks) :]
        self._seen = self._ends[-1]

    def _extend(self, closed: int) -> None:
        edges = self._table.edges
        for block in range(self._seen, closed):
            if edges[block + 1] - edges[self._ends[-1]] >= self._tokens:
                self._ends.append(block + 1)
        self._seen = max(self._seen, closed)
