"""What is summed up over the text, and the best mix of each head that follows from it."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.calibration.listening import Heard

_REACH, _PER_UNIT = 80, 8
_LEVELS = torch.arange(-_REACH * _PER_UNIT, _REACH * _PER_UNIT + 1, dtype=torch.float64) / _PER_UNIT
"""Levels are told apart to 1/8: a share is off by 1/64 at most."""


class MixStatistics:
    """Sums of one layer from which the error of every mix can be told afterwards.

    With r = y_full - y_local and m = y_memory - y_local, mixing in a share s leaves the error
    |r - s m|^2 = |r|^2 - 2 s <r, m> + s^2 |m|^2. One share for all queries of a head: the best is
    <r, m> / |m|^2. A share sigmoid(c + level) that depends on the query (mix = "lse"; the level is
    log phi(q) z minus the log of attention's denominator): sums are kept per level, and c is searched.

    Args:
        heads: H.
    """

    def __init__(self, heads: int) -> None:
        self.queries = 0
        """How many were added."""
        self._apart = torch.zeros(heads, dtype=torch.float64)
        self._along = torch.zeros(heads, len(_LEVELS), dtype=torch.float64)
        self._length = torch.zeros_like(self._along)
        self._count = torch.zeros_like(self._along)

    def add(self, full: Tensor, heard: Heard) -> None:
        """Add queries.

        Args:
            full: ``[H, T, D]`` what attention to everything gives them.
            heard: what the window gives them, and what the memory holds.
        """
        apart = full.float() - heard.local.float()
        memory = heard.value - heard.local.float()
        self._apart += _sum(apart.square())
        bins = self._bins(heard.level, full.shape[:2])
        along, length = (_per_query(x) for x in (apart * memory, memory.square()))
        self._along.scatter_add_(1, bins, along)
        self._length.scatter_add_(1, bins, length)
        self._count.scatter_add_(1, bins, torch.ones_like(along))
        self.queries += full.shape[1]

    def gate(self) -> Tensor:
        """``[H]`` float32 in [0, 1]: the share with the least error; 0 where memory is of no use."""
        length = self._length.sum(1)
        best = self._along.sum(1) / length.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.where(length > 0, best, 0).clamp(0, 1).float()

    def offset(self) -> Tensor:
        """``[H]`` float32: the c with the least error, to 1/8; -inf where memory is of no use.

        The error is no convex function of c, so all candidates are tried; they cost nothing but sums.
        """
        shares = torch.sigmoid(_LEVELS[:, None] + _LEVELS)  # [c, level]
        change = (shares**2) @ self._length.mT - 2 * shares @ self._along.mT  # [c, H]
        least, at = change.min(0)
        return torch.where(least < 0, _LEVELS[at], -torch.inf).float()

    def shares(self, gate: Tensor, offset: Tensor | None) -> Tensor:
        """``[H, levels]``: the share of the memory at each level under these settings ``[H]``."""
        if offset is None:
            return gate.double()[:, None].expand_as(self._along)
        return torch.sigmoid(offset.double()[:, None] + _LEVELS)

    def mean_share(self, gate: Tensor, offset: Tensor | None) -> Tensor:
        """``[H]``: mean share over the queries."""
        total = (self.shares(gate, offset) * self._count).sum(1)
        return (total / max(self.queries, 1)).float()

    def errors(self, gate: Tensor, offset: Tensor | None) -> tuple[Tensor, Tensor]:
        """Squared errors ``[H]`` of the window alone, and of the mix under these settings."""
        share = self.shares(gate, offset)
        change = share.square() * self._length - 2 * share * self._along
        return self._apart.clone(), self._apart + change.sum(1)

    def _bins(self, level: Tensor | None, shape: torch.Size) -> Tensor:
        """``[H, T]``: which level each query is at."""
        if level is None:
            return torch.zeros(shape, dtype=torch.long)
        bins = (level.double().cpu() + _REACH) * _PER_UNIT
        return bins.round().long().clamp(0, len(_LEVELS) - 1)


def _per_query(x: Tensor) -> Tensor:
    """``[H, T, D]`` -> ``[H, T]`` float64. The processor sums: some accelerators have no float64."""
    return x.sum(-1).cpu().double()


def _sum(x: Tensor) -> Tensor:
    return _per_query(x).sum(1)
