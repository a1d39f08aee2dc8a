"""Look-ups that read groups of rows first."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.memory.index import BlockIndex
from longmem.memory.serving import Serving
from longmem.ops import block_scoring as kernels
from longmem.retrieval import PEAK, BlockScorer, best_of, estimate

_ESTIMATES = 2**18
"""Estimates made at once per KV head: so many stay in a core's cache until they were used."""

_UNIT = 2.0**-40
"""Share of a vote in which votes are counted where many threads add them: sums of whole numbers do not
depend on the order."""

_TINY = 1e-7
"""Share of the mass below which a difference of sums in float32 tells nothing."""


class GroupLookups:
    """Scores blocks from the rows of the groups that promise most, and the rows on no shelf.

    For every query a group has an expected largest logit and an expected mass (`estimate`). Per KV
    head the groups whose largest logit comes nearest to the best one's, for any of its queries, are
    read and their rows scored exactly, so many whatever the length of the history.
    Groups that are not read count as one more block, of their expected mass, so that a head that
    looks everywhere does not outvote one that is sure. With all groups read nothing is estimated.

    Args:
        scorer: one whose `fold` gives log masses.
        index: with shelves.
        scaling: factor of the logits that queries lack.
    """

    def __init__(self, scorer: BlockScorer, index: BlockIndex, scaling: float = 1.0) -> None:
        self._scorer = scorer
        self._kernels = scorer.fused and index.spec.kernels
        self._scaling = scaling
        self._index = index
        self._known: tuple[Tensor, Serving, int] | None = None  # what the estimates are of
        self._own = slice(0, 0)  # queries they are of
        self._behind = self._shares = self._whole = self._tops = torch.empty(0)

    def scores(self, q: Tensor, own: slice, loose: Tensor, probe: int) -> Tensor:
        """Scores ``[H_kv, N]`` float32 of the candidates for one look-up.

        Args:
            q: ``[H_kv, R', D]`` scaled queries of all look-ups of a pass.
            own: which of them are this look-up's.
            loose: ``[H_kv, R, n]`` `BlockScorer.fold` of the blocks from ``index.loose`` on.
            probe: groups to read per KV head.

        Raises:
            CorruptDataError: rows that were stored cannot be read.
        """
        shelves, first = self._index.shelves, self._index.first
        assert shelves is not None
        group, groups = self._estimate(q, own)
        if not groups:  # no shelf serves yet
            return self._scorer.tally(loose)
        at = slice(own.start - self._own.start, own.stop - self._own.start)
        behind = self._behind[:, at].amax(1)
        best = best_of(behind, min(probe, groups))
        rows, blocks = shelves.read(best + group)
        logits = self._logits(q[:, own], rows).masked_fill_((blocks < first)[:, None], -torch.inf)
        votes = self._scorer.tally(torch.cat((loose, logits, self._unread(at, best)), dim=2))
        n = loose.shape[2]
        scores = votes.new_zeros(len(votes), len(self._index) - first)
        scores[:, scores.shape[1] - n :] = votes[:, :n]
        return _added(scores, (blocks - first).clamp_(min=0), votes[:, n:-1])

    def end(self) -> None:
        """Let go of the estimates."""
        self._known = None
        self._behind = self._shares = self._whole = self._tops = torch.empty(0)

    def _estimate(self, q: Tensor, own: slice) -> tuple[int, int]:
        """Estimate all groups for these queries and some that come next, unless that is known; the first
        group, and how many."""
        index, shelves = self._index, self._index.shelves
        assert shelves is not None
        group, summaries, counts = shelves.candidates(index.first)
        n = len(counts)
        if n and not (self._knows(q, shelves.serving, group) and own.stop <= self._own.stop):
            stop = min(q.shape[1], max(own.stop, own.start + _ESTIMATES // n))
            self._own, self._known = slice(own.start, stop), (q, shelves.serving, group)
            peaks, masses = self._expected(q[:, self._own], summaries, counts)
            self._behind = peaks.sub_(peaks.amax(2, keepdim=True))
            self._tops = masses.amax(2, keepdim=True)
            self._shares = masses.sub_(self._tops).exp_()
            self._whole = self._shares.sum(2, keepdim=True)
        return group, n

    def _logits(self, q: Tensor, rows: Tensor) -> Tensor:
        """``[H_kv, R, M]`` float32 of rows ``[H_kv, M, D]``."""
        if not self._kernels:
            return (q @ rows.mT).float() * self._scaling
        starts = torch.arange(rows.shape[1] + 1, dtype=torch.int32, device=rows.device)
        return kernels.fold(
            q, rows, starts, scaling=self._scaling, most_rows=1
        )  # of one: its logit

    def _expected(self, q: Tensor, summaries: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """`estimate` of queries, scaled."""
        if self._kernels and summaries.stride(2) == 1:
            return kernels.estimate(q, summaries, counts, scaling=self._scaling, peak=PEAK)
        return estimate(q.float() * self._scaling, summaries, counts)

    def _knows(self, q: Tensor, serving: Serving, group: int) -> bool:
        """Whether the estimates are of these queries (taken in order) and groups."""
        if self._known is None:
            return False
        of, then, first = self._known
        return of is q and then is serving and first == group

    def _unread(self, own: slice, read: Tensor) -> Tensor:
        """``[H_kv, R, 1]``: log of the mass of all groups but those read ``[H_kv, p]``."""
        shares = self._shares[:, own]
        if read.shape[1] == shares.shape[2]:
            return torch.full_like(shares[..., :1], -torch.inf)
        known = shares.gather(2, read[:, None].expand(-1, shares.shape[1], -1))
        others = self._whole[:, own] - known.sum(2, keepdim=True)
        return others.clamp_(min=_TINY).log_().add_(self._tops[:, own])


def _added(scores: Tensor, blocks: Tensor, votes: Tensor) -> Tensor:
    """Scores ``[H_kv, N]`` with votes ``[H_kv, m]`` added to those of their blocks ``[H_kv, m]``, alike
    each time: on a device numbers are added in any order."""
    if scores.device.type == "cpu":
        return scores.scatter_add_(1, blocks, votes)
    counted = torch.zeros_like(scores, dtype=torch.int64)
    counted.scatter_add_(1, blocks, (votes.double() / _UNIT).round().long())
    return scores.add_(counted.double().mul_(_UNIT).float())
