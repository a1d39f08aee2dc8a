"""Where between two boundaries a third one separates the tokens best, by their keys (EM-LLM)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metric = Literal["modularity", "conductance"]


def similarity(keys: Tensor) -> Tensor:
    """``A [n, n]`` float64 of keys ``[n, C]``: dot products, those of all heads added up (EM-LLM,
    arXiv 2407.09450, equation 2)."""
    keys = keys.double()
    return keys @ keys.T


def split_scores(a: Tensor, metric: Metric) -> Tensor:
    """How well each split separates n tokens into those before it and the rest; higher is better.

    EM-LLM (arXiv 2407.09450), with two communities S = ``0 .. t-1`` and its rest S':

    - modularity, equation 3: ``1 / 4m * sum over pairs in one community (A_ij - k_i k_j / 2m)``, with
      k the row sums of A and 2m the sum of all of A;
    - conductance, equation 4, negated: ``sum of A over S x S' / min(vol S, vol S')``, vol being the
      sum of A inside a community.

    Args:
        a: ``A [n, n]``, symmetric.
        metric: which of the two.

    Returns:
        ``[n - 1]`` float64 for the splits t = 1 .. n - 1; -inf where a denominator is not positive,
        as dot products may make it.
    """
    inside = a.cumsum(0).cumsum(1).diagonal()[:-1]  # [n - 1]: sum of A over S x S
    degree, total = a.sum(1), a.sum()
    before = degree.cumsum(0)[:-1]  # [n - 1]: sum of A over S x everything
    across = before - inside
    outside = total - inside - 2 * across
    if metric == "modularity":
        expected = (before.square() + (total - before).square()) / total
        scores, valid = (inside + outside - expected) / (2 * total), total > 0
    else:
        volume = torch.minimum(inside, outside)
        scores, valid = -across / volume, volume > 0
    return scores.masked_fill(~valid, -torch.inf)


def best_split(a: Tensor, metric: Metric, first: int, last: int) -> int:
    """The best split t of ``first .. last``; the last of several, so that none moves for nothing."""
    scores = split_scores(a, metric)[first - 1 : last]
    return last - int(scores.flip(0).argmax())
