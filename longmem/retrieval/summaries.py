"""What look-ups read of groups of rows before they read any row."""

from __future__ import annotations

import torch
from torch import Tensor

PEAK = 2.5
"""Standard deviations above the mean at which the largest of 64 to 128 normal values is expected (2.4 to
2.6). Ranked by their mean, mass or channel-wise bounds (Quest), groups agree less with the full scan."""
_RUN = 16


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
        summaries: ``[H_kv, 2 D', G]``, as `summarise` gives them, groups last.
        counts: ``[G]`` rows per group.

    Returns:
        ``[H_kv, R, G]`` each: the largest logit to expect, and the log of the sum of exp(logit), for
        which a normal distribution has log n + mean + variance / 2.
    """
    mean, variance = summaries.chunk(2, dim=1)
    q = q.float()
    expected, spread = q @ mean, q.square() @ variance
    masses = torch.add(expected, spread, alpha=0.5).add_(counts.log())
    return expected.add_(spread.sqrt_(), alpha=PEAK), masses


def best_of(values: Tensor, k: int) -> Tensor:
    """Where the `k` largest of each row ``[H_kv, n]`` stand, ``[H_kv, k]`` in no order.

    As `torch.topk`, which is slow over long rows: the k largest are in the k runs of neighbours whose
    own largest is largest.
    """
    rows, n = values.shape
    runs = n // _RUN
    if runs < 2 * k:
        return values.topk(min(k, n), dim=1, sorted=False).indices
    tail = values[:, runs * _RUN :]
    best_runs = values[:, : runs * _RUN].reshape(rows, runs, _RUN).amax(2).topk(k, dim=1).indices
    places = (best_runs[..., None] * _RUN + torch.arange(_RUN, device=values.device)).flatten(1)
    rest = torch.arange(runs * _RUN, n, device=values.device).expand(rows, -1)
    places = torch.cat((places, rest), dim=1)
    found = torch.cat((values.gather(1, places[:, : k * _RUN]), tail), dim=1)
    return places.gather(1, found.topk(k, dim=1, sorted=False).indices)
