"""InfLLM's scorer: the span's mean query against each block's representative keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.retrieval.scorer import Representatives


@dataclass(frozen=True)
class Representative:
    """Relevance of a block: dot products of the mean query with its representative keys.

    InfLLM (arXiv 2402.04617, equation 2), summed over heads and averaged over the block's keys.
    """

    name: str = "representative"

    def score(self, q: Tensor, blocks: Representatives) -> Tensor:
        """As `BlockScorer.score`."""
        kv_heads, _, dim = blocks.keys.shape
        mean = q.mean(1).view(kv_heads, -1, dim).sum(1, keepdim=True)  # [H_kv, 1, D]
        dots = (mean @ blocks.keys.mT).float().sum((0, 1)) * blocks.scaling  # [M]
        return blocks.sum_by_block(dots) / blocks.sum_by_block(torch.ones_like(dots))

    def shares(self, scores: Tensor) -> Tensor:
        """As `BlockScorer.shares`."""
        return torch.softmax(scores, dim=0)
