"""InfLLM's scorer: the span's mean query against each block's representative keys."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from longmem.retrieval.index_rows import IndexRows
from longmem.retrieval.scorer import BlockScorer, grouped


@dataclass(frozen=True)
class Representative(BlockScorer):
    """Relevance of a block: dot products of the mean query with its representative keys.

    InfLLM (arXiv 2402.04617, equation 2), summed over heads and averaged over the block's keys.
    Which keys are representative, the index decides (MemoryConfig.repr_by).
    """

    name: str = "representative"

    def rows(self, q: Tensor, kv_heads: int) -> Tensor:
        """As `BlockScorer.rows`; R = 1: products with a sum of queries are the sum of products."""
        return grouped(q.mean(1, keepdim=True), kv_heads).sum(1, keepdim=True)

    def fold(self, logits: Tensor, blocks: IndexRows) -> Tensor:
        """As `BlockScorer.fold`: the mean over each block's keys."""
        return blocks.mean_by_block(logits)

    def tally(self, folded: Tensor) -> Tensor:
        """As `BlockScorer.tally`."""
        return folded.sum(1)
