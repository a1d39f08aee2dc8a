"""Soft votes over blocks as TokenSelect defines them (arXiv 2411.02886, equation 7), and the choice."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def score_naive(queries: Tensor, keys: Tensor, starts: Tensor, scaling: float = 1.0) -> Tensor:
    """Votes ``[H_kv, N]`` float32: every query spends one vote over all rows, by a softmax of its logits.

    Args:
        queries: ``[H_kv, R, D]``.
        keys: ``[H_kv, M, D]`` rows of N blocks, block by block without padding.
        starts: ``[N + 1]`` the first row of each block; its first element need not be 0, if `keys` is
            a part.
        scaling: factor of the logits.
    """
    logits = queries.float() @ keys.float().mT * scaling  # [H_kv, R, M]
    votes = torch.softmax(logits, dim=-1).sum(1)  # [H_kv, M]
    bounds = (starts - starts[0]).tolist()
    own = [votes[:, a:b].sum(1) for a, b in pairwise(bounds)]
    return torch.stack(own, dim=1) if own else votes.new_zeros(len(votes), 0)


def choose_naive(scores: Tensor, k: int) -> Tensor:
    """The `k` best of each row ``[..., N]`` as ids ``[..., min(k, N)]`` int32, ascending; of equals the
    older."""
    best = scores.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    return best.sort(dim=-1).values.int()


def fold_naive(queries: Tensor, keys: Tensor, starts: Tensor, scaling: float = 1.0) -> Tensor:
    """``[H_kv, R, N]`` float32: the log of the sum of exp(logit) over each block's rows; arguments as of
    `score_naive`."""
    logits = queries.float() @ keys.float().mT * scaling
    bounds = (starts - starts[0]).tolist()
    own = [logits[..., a:b].logsumexp(2) for a, b in pairwise(bounds)]
    return torch.stack(own, dim=2) if own else logits[..., :0]
