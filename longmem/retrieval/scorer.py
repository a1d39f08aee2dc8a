"""What a block scorer is given and what it returns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from longmem.retrieval.index_rows import Form, IndexRows


class BlockScorer(ABC):
    """Scores blocks for look-ups of one layer. Stateless, shared by all sessions.

    Scoring is cut where work can be shared: `rows` of many look-ups go through one matrix product
    with the index, `fold` looks at one block at a time, so that an index can be read in tiles and
    blocks that close later be added, and only `tally` sees all blocks.
    """

    form: ClassVar[Form] = "tokens"
    """What rows of the index it reads."""
    log_masses: ClassVar[bool] = False
    """Whether `fold` gives the log of a sum over a block's rows, and `tally` the shares of such sums.
    Then parts of blocks may be tallied, and their shares added: look-ups may go through groups."""
    fused: ClassVar[bool] = False
    """Whether the kernels of `longmem.ops.block_scoring` compute its `fold` and `tally`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in ``MemoryConfig(scorer=...)``."""

    @abstractmethod
    def rows(self, q: Tensor, kv_heads: int) -> Tensor:
        """Far queries ``[H, T, D]`` of one look-up as rows ``[H_kv, R, D']`` against the index."""

    @abstractmethod
    def fold(self, logits: Tensor, blocks: IndexRows) -> Tensor:
        """``[H_kv, R, N]`` float32: what each block is worth to each row.

        Args:
            logits: ``[H_kv, R, M]`` float32, scaled, of `rows` against ``blocks.keys``; may be
                overwritten.
            blocks: where blocks start. What one block gets must not depend on the others.
        """

    @abstractmethod
    def tally(self, folded: Tensor) -> Tensor:
        """Scores ``[H_kv, N]`` float32 from `fold` ``[H_kv, R, N]`` over all candidates."""

    def reduce(self, logits: Tensor, blocks: IndexRows) -> Tensor:
        """Scores ``[H_kv, N]`` of logits ``[H_kv, R, M]``, which may be overwritten."""
        return self.tally(self.fold(logits, blocks))

    def score(self, q: Tensor, blocks: IndexRows) -> Tensor:
        """Scores ``[H_kv, N]`` float32 per KV head, the higher the better, of far queries
        ``[H, T, D]``. A layer that chooses once for all heads sums over the first dim."""
        rows = self.rows(q, blocks.keys.shape[0]) * blocks.scaling
        return self.reduce((rows @ blocks.keys.mT).float(), blocks)

    def shares(self, scores: Tensor) -> Tensor:
        """``[N]``: scores ``[N]`` as shares that sum to 1, for people to read."""
        return torch.softmax(scores, dim=0)


def grouped(q: Tensor, kv_heads: int) -> Tensor:
    """Queries ``[H, T, D]`` by the KV head they read: ``[H_kv, H / H_kv * T, D]``."""
    return q.reshape(kv_heads, -1, q.shape[2])
