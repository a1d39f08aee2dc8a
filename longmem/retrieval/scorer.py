"""What a block scorer is given and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Representatives:
    """The representative keys of N blocks of one layer.

    Args:
        keys: ``[H_kv, M, D]`` un-rotated keys of all blocks, block by block.
        block: ``[M]`` int32: the block each of them stands for.
        n_blocks: N.
        scaling: the layer's factor of the logits.
    """

    keys: Tensor
    block: Tensor
    n_blocks: int
    scaling: float

    def sum_by_block(self, values: Tensor) -> Tensor:
        """``[N]``: the sum of values ``[M]`` over each block's representatives."""
        return values.new_zeros(self.n_blocks).index_add_(0, self.block, values)


class BlockScorer(Protocol):
    """Scores blocks for one look-up of one layer. Stateless, shared by all sessions."""

    @property
    def name(self) -> str:
        """Its name in ``MemoryConfig(scorer=...)``."""

    def score(self, q: Tensor, blocks: Representatives) -> Tensor:
        """Scores ``[N]`` float32, the higher the better, of far queries ``[H, T, D]``."""

    def shares(self, scores: Tensor) -> Tensor:
        """``[N]``: the scores as shares that sum to 1, for people to read."""
