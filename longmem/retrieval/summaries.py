"""What look-ups read of groups of rows before they read any row."""

from __future__ import annotations

import torch
from torch import Tensor

PEAK = 2.5
"""Standard deviations above the mean at which the largest of 64 to 128 normal values is expected (2.4 to
2.6). Ranked by their mean, mass or channel-wise bounds (Quest), groups agree less with the full scan."""


def summarise(rows: Tensor, present: Tensor) -> Tensor:
    """Channel-wise mean and variance of groups, ``[..., 2 D']`` float32.

    Args:
        rows: ``[..., g, D']``.
        present: ``[..., g]`` bool: which rows of a group there are.
    """
    weight = present[..., None].float() / present.sum(-1)[..., None, None]
    mean = (rows.float() * weight).sum(-2, keepdim=True)
    variance = ((rows.float() - mean).square() * weight).sum(-2)
    return torch.cat((mean[..., 0, :], variance), dim=-1)


def estimate(q: Tensor, summaries: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """What groups hold for each query, as if logits of a group were normally distributed with
    channels that do not depend on each other: mean q m, variance sum_c q_c^2 v_c.

    Args:
        q: ``[H_kv, R, D']`` queries, scaled.
        summaries: ``[H_kv, G, 2 D']`` as `summarise` gives them.
        counts: ``[G]`` rows per group.

    Returns:
        ``[H_kv, R, G]`` each: the largest logit to expect, and the log of the sum of exp(logit), for
        which a normal distribution has log n + mean + variance / 2.
    """
    mean, variance = summaries.chunk(2, dim=-1)
    q = q.float()
    squares = q.square()
    spread = squares @ variance.mT
    peaks = torch.baddbmm(spread.sqrt_(), q, mean.mT, beta=PEAK)
    both = torch.cat((q, squares / 2), dim=-1)
    return peaks, torch.baddbmm(counts.log()[None, None], both, summaries.mT)
