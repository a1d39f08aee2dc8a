"""Soft vote: every head spends one vote over the blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longmem.retrieval.index_rows import IndexRows
from longmem.retrieval.scorer import BlockScorer, grouped

_RUN = 64


@dataclass(frozen=True)
class SoftVote(BlockScorer):
    """Per-head softmax over all representative keys, summed over heads and queries.

    A head that is sure outvotes heads that look elsewhere, however large their logits: the
    soft vote of TokenSelect (arXiv 2411.02886, equation 7), applied to blocks. The votes of a
    block's keys together are the softmax over blocks of the log-sum-exp of each block's logits;
    written that way, no block sees another before the last step.

    Args:
        voters: most votes per head in one look-up. The queries of a longer span are averaged in
            that many groups of consecutive tokens, so that reading a turn costs little more than a
            decode step does. Default 1: the mean query.
    """

    voters: int = 1
    name: str = "soft_vote"
    log_masses: ClassVar[bool] = True
    fused: ClassVar[bool] = True

    def rows(self, q: Tensor, kv_heads: int) -> Tensor:
        """As `BlockScorer.rows`; R = H / H_kv * min(T, voters)."""
        return grouped(self._pool(q), kv_heads)

    def fold(self, logits: Tensor, blocks: IndexRows) -> Tensor:
        """As `BlockScorer.fold`: the log-sum-exp of each block's logits.

        A block whose logits are all 87 or more below the best of a call gets -inf: its share of the
        vote is below what float32 holds.
        """
        top = _max_of_rows(logits)
        sums = blocks.sum_by_block(logits.sub_(top).exp_())
        return sums.log_().add_(top)

    def tally(self, folded: Tensor) -> Tensor:
        """As `BlockScorer.tally`: softmax over blocks, summed over heads and queries."""
        return torch.softmax(folded, dim=-1).sum(1)

    def reduce(self, logits: Tensor, blocks: IndexRows) -> Tensor:
        """As `BlockScorer.reduce`, in the order of the definition: one look-up alone is faster so."""
        votes = torch.softmax(logits, dim=-1).sum(1, keepdim=True)
        return blocks.sum_by_block(votes)[:, 0]

    def shares(self, scores: Tensor) -> Tensor:
        """As `BlockScorer.shares`."""
        return scores / scores.sum()

    def _pool(self, q: Tensor) -> Tensor:
        """Far queries ``[H, T, D]`` averaged in at most `voters` groups of consecutive tokens."""
        if q.shape[1] <= self.voters:
            return q
        groups = q.tensor_split(self.voters, dim=1)
        return torch.stack([group.mean(1) for group in groups], dim=1)


def _max_of_rows(logits: Tensor) -> Tensor:
    """``[H_kv, R, 1]``: the largest of logits ``[H_kv, R, M]``."""
    kv_heads, n_query, n_rows = logits.shape
    runs = n_rows // _RUN
    if logits.stride(2) == 1 or not runs:
        return logits.amax(2, keepdim=True)
    # M lies outside in memory: torch is six times faster over a few long rows than many short ones.
    wide = logits.mT[:, : runs * _RUN].reshape(kv_heads, _RUN, -1).amax(1)
    best = [wide.view(kv_heads, runs, n_query).amax(1), *logits[..., runs * _RUN :].unbind(2)]
    return torch.stack(best, dim=2).amax(2, keepdim=True)
