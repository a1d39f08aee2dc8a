"""InfLLM v2's scorer: the best of a block's sub-blocks, each by its mean key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longmem.retrieval.index_rows import Form, IndexRows
from longmem.retrieval.scorer import BlockScorer, grouped


@dataclass(frozen=True)
class SubBlock(BlockScorer):
    """A block is worth as much to a head as the best of its sub-blocks; heads vote by softmax.

    After InfLLM v2 (MiniCPM4, arXiv 2506.07900, section on the sparse attention): queries against
    mean keys of short runs of tokens, votes of a head group added up, max-pooling from runs to
    blocks. There runs overlap and pooling comes last; here runs do not overlap and pooling comes
    before the vote, so that a block's worth depends on no other block.
    """

    name: str = "sub_block"
    form: ClassVar[Form] = "means"

    def rows(self, q: Tensor, kv_heads: int) -> Tensor:
        """As `BlockScorer.rows`; R = H / H_kv: the span's mean query per head."""
        return grouped(q.mean(1, keepdim=True), kv_heads)

    def fold(self, logits: Tensor, blocks: IndexRows) -> Tensor:
        """As `BlockScorer.fold`: the largest logit of each block's sub-blocks."""
        return blocks.max_by_block(logits)

    def tally(self, folded: Tensor) -> Tensor:
        """As `BlockScorer.tally`: softmax over blocks, summed over the heads of a group."""
        return torch.softmax(folded, dim=-1).sum(1)

    def shares(self, scores: Tensor) -> Tensor:
        """As `BlockScorer.shares`."""
        return scores / scores.sum()
