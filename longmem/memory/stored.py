"""Append-only tensors of a stored session: some were loaded with it, the others are read when wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from longmem.memory.source import BlockSource


@dataclass(frozen=True)
class Stored:
    """Tensors by name, as `SessionMemory.export` gave them commit by commit, one after the other.

    Args:
        blocks: those that were loaded.
        rows: how many rows each has, loaded or not.
        source: gives the rows of the others.
    """

    blocks: Mapping[str, Tensor]
    rows: Mapping[str, int]
    source: BlockSource

    def length(self, name: str) -> int:
        """Rows of a tensor; 0 if there is none of that name."""
        return self.rows.get(name, 0)

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start .. stop of a tensor that has them.

        Raises:
            CorruptDataError: as `SessionHandle.read_blocks`.
        """
        if name in self.blocks:
            return self.blocks[name][start:stop]
        return self.source.read_blocks(name, [(start, stop)])[0]
