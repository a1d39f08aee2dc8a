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
        voters: most queries of a span that vote, in tokens; longer spans are sampled evenly, the
            last query included. It bounds the cost of reading long turns. Default 32.
    """

    voters: int = 32
    name: str = "soft_vote"

    def score(self, q: Tensor, blocks: Representatives) -> Tensor:
        """As `BlockScorer.score`."""
        kv_heads, _, dim = blocks.keys.shape
        rows = self._sample(q).reshape(kv_heads, -1, dim) * blocks.scaling  # [H_kv, H/H_kv * T, D]
        votes = torch.softmax(rows @ blocks.keys.mT, dim=-1, dtype=torch.float32)
        return blocks.sum_by_block(votes.sum((0, 1)))

    def shares(self, scores: Tensor) -> Tensor:
        """As `BlockScorer.shares`."""
        return scores / scores.sum()

    def _sample(self, q: Tensor) -> Tensor:
        n_query = q.shape[1]
        if n_query <= self.voters:
            return q
        last = n_query - 1
        chosen = torch.arange(self.voters, device=q.device) * last // max(self.voters - 1, 1)
        return q[:, chosen]
