"""Look-ups that read groups of rows first."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.memory.index import BlockIndex
from longmem.retrieval import BlockScorer, estimate


class GroupLookups:
    """Scores blocks from the rows of the groups that promise most, and the rows on no shelf.

    For every query a group has an expected largest logit and an expected mass (`estimate`). Per KV
    head the groups whose largest logit comes nearest to the best one's, for any of its queries, are
    read and their rows scored exactly, ``grid.probe`` of them whatever the length of the history.
    Groups that are not read count as one more block, of their expected mass, so that a head that
    looks everywhere does not outvote one that is sure. With all groups read nothing is estimated.

    Args:
        scorer: one whose `fold` gives log masses.
        index: with shelves.
    """

    def __init__(self, scorer: BlockScorer, index: BlockIndex) -> None:
        self._scorer = scorer
        self._index = index
        self._known: tuple[Tensor, int, int] | None = None  # queries, groups the estimates are of
        self._behind = self._shares = self._tops = torch.empty(0)

    def scores(self, q: Tensor, own: slice, loose: Tensor) -> Tensor:
        """Scores ``[H_kv, N]`` float32 of the candidates for one look-up.

        Args:
            q: ``[H_kv, R', D]`` scaled queries of all look-ups that share the estimates.
            own: which of them are this look-up's.
            loose: ``[H_kv, R, n]`` `BlockScorer.fold` of the blocks from ``index.loose`` on.

        Raises:
            CorruptDataError: rows that were stored cannot be read.
        """
        shelves, first = self._index.shelves, self._index.first
        assert shelves is not None
        group, groups = self._estimate(q)
        if not groups:  # no shelf is full
            return self._scorer.tally(loose)
        behind = self._behind[:, own].amax(1)
        best = behind.topk(min(shelves.grid.probe, groups), dim=1, sorted=False).indices
        rows, blocks = shelves.read(best + group)
        logits = (q[:, own] @ rows.mT).float().masked_fill_((blocks < first)[:, None], -torch.inf)
        votes = self._scorer.tally(torch.cat((loose, logits, self._unread(own, best)), dim=2))
        n = loose.shape[2]
        scores = votes.new_zeros(len(votes), len(self._index) - first)
        scores[:, scores.shape[1] - n :] = votes[:, :n]
        return scores.scatter_add_(1, (blocks - first).clamp_(min=0), votes[:, n:-1])

    def end(self) -> None:
        """Let go of the estimates."""
        self._known = None
        self._behind = self._shares = self._tops = torch.empty(0)

    def _estimate(self, q: Tensor) -> tuple[int, int]:
        """Estimate all groups for all queries, unless that is known; the first group, and how many."""
        shelves = self._index.shelves
        assert shelves is not None
        group, summaries, counts = shelves.candidates(self._index.first)
        n = len(counts)
        if n and (self._known is None or self._known[0] is not q or self._known[1:] != (group, n)):
            peaks, masses = estimate(q, summaries, counts)
            self._behind = peaks.sub_(peaks.amax(2, keepdim=True))
            self._tops = masses.amax(2, keepdim=True)
            self._shares = masses.sub_(self._tops).exp_()
            self._known = q, group, n
        return group, n

    def _unread(self, own: slice, read: Tensor) -> Tensor:
        """``[H_kv, R, 1]``: log of the mass of all groups but those read ``[H_kv, p]``."""
        shares = self._shares[:, own]
        others = shares.scatter(2, read[:, None].expand(-1, shares.shape[1], -1), 0.0)
        return others.sum(2, keepdim=True).log_().add_(self._tops[:, own])
