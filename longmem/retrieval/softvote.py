"""Soft vote: every head spends one vote over the blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.retrieval.scorer import Representatives


@dataclass(frozen=True)
class SoftVote:
    """Per-head softmax over all representative keys, summed over heads and queries.

    A head that is sure outvotes heads that look elsewhere, however large their logits: the
    soft vote of TokenSelect (arXiv 2411.02886, equation 7), applied to blocks.

    Args:
        voters: most votes per head in one look-up. The queries of a longer span are averaged in
            that many groups of consecutive tokens, so that reading a turn costs little more than a
            decode step does. Default 1: the mean query.
    """

    voters: int = 1
    name: str = "soft_vote"

    def score(self, q: Tensor, blocks: Representatives) -> Tensor:
        """As `BlockScorer.score`."""
        kv_heads, _, dim = blocks.keys.shape
        rows = self._pool(q).reshape(kv_heads, -1, dim) * blocks.scaling  # [H_kv, H/H_kv * T, D]
        votes = torch.softmax(rows @ blocks.keys.mT, dim=-1, dtype=torch.float32)
        return blocks.sum_by_block(votes.sum((0, 1)))

    def shares(self, scores: Tensor) -> Tensor:
        """As `BlockScorer.shares`."""
        return scores / scores.sum()

    def _pool(self, q: Tensor) -> Tensor:
        """Far queries ``[H, T, D]`` averaged in at most `voters` groups of consecutive tokens."""
        if q.shape[1] <= self.voters:
            return q
        groups = q.tensor_split(self.voters, dim=1)
        return torch.stack([group.mean(1) for group in groups], dim=1)
