"""Single tokens of many sessions: a product per session and part, everything else for all at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.ops.scratch import Scratch
from longmem.ops.step_attention.keys import StepKeys, Stepped
from longmem.ops.working_set_attention.attended import MassOf

_NEVER = float("-inf")


def attend_steps(
    q_near: Tensor,
    q_far: Tensor,
    keys: Sequence[StepKeys],
    scratch: Scratch,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    mass_of: MassOf | None = None,
    want_lse: bool = False,
) -> Stepped:
    """As `naive.attend_naive`, which defines it; arguments, shapes and results are the same, but that
    `Stepped.weights` and `Stepped.mass` hold anything where a session has no key to sum for, and that
    the logits' mass includes the token's own.

    Nothing is allocated, and nothing waits for the device: all results lie in `scratch`.
    """
    sessions, heads, dim = q_near.shape
    kv_heads = keys[0].near_k.shape[0]
    grouped = (sessions, kv_heads, heads // kv_heads, dim)
    n = max(sum(own.lengths) for own in keys)
    shape, device = (*grouped[:3], n), q_near.device
    scores = scratch.take("scores", shape, torch.float32, device)
    low = scores
    if q_near.dtype != torch.float32:
        low = scratch.take("scores", shape, q_near.dtype, device)
    _products(low, q_near.view(grouped), q_far.view(grouped), keys, scaling)
    if low is not scores:
        scores.copy_(low)
    mass = None
    if mass_of == "logits":
        mass = torch.sum(scores, 2, out=_mass(scratch, scores))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    _hide(scores, keys)
    weights = scratch.take("weights", shape, torch.float32, device)
    lse = _softmax(scores, sinks, weights, scratch, want_lse)
    if mass_of == "attention":
        mass = torch.sum(weights, 2, out=_mass(scratch, weights))
    low = weights
    if q_near.dtype != torch.float32:
        low = scratch.take("weights", shape, q_near.dtype, device).copy_(weights)
    out = scratch.take("attended", grouped, q_near.dtype, device)
    _values(low, keys, out)
    return Stepped(out.view(sessions, heads, dim), weights, mass, lse)


def _products(
    scores: Tensor, q_near: Tensor, q_far: Tensor, keys: Sequence[StepKeys], scaling: float
) -> None:
    """Logits of each session's queries ``[S, H_kv, G, D]`` and its own keys, side by side."""
    n = scores.shape[3]
    for rows, near, far, own in zip(
        scores.unbind(), q_near.unbind(), q_far.unbind(), keys, strict=True
    ):
        sizes = own.lengths
        parts = rows.split_with_sizes((*sizes, n - sum(sizes)), 2)
        for part, query, key in zip(
            parts, (far, far, near), (own.far_k, own.pending_k, own.near_k), strict=False
        ):
            if key.shape[2]:
                part.baddbmm_(query, key, beta=0, alpha=scaling)


def _hide(scores: Tensor, keys: Sequence[StepKeys]) -> None:
    """Places without a token get no attention."""
    n = scores.shape[3]
    for s, own in enumerate(keys):
        far, pending, near = own.lengths
        if far + pending + near < n:
            scores[s, :, :, far + pending + near :].fill_(_NEVER)
        if own.unused is not None:
            scores[s, :, :, :far].masked_fill_(own.unused[:, None], _NEVER)


def _softmax(
    scores: Tensor, sinks: Tensor | None, weights: Tensor, scratch: Scratch, want_lse: bool
) -> Tensor | None:
    """Softmax into `weights`; a sink adds to the denominator only. Gives the log of the denominator
    ``[S, H]`` where it is wanted."""
    if sinks is None and not want_lse:
        torch.softmax(scores, -1, out=weights)
        return None
    lse = scratch.take("lse", (*scores.shape[:3], 1), torch.float32, scores.device)
    torch.logsumexp(scores, -1, keepdim=True, out=lse)
    if sinks is not None:
        torch.logaddexp(lse, sinks.float().view(1, *lse.shape[1:]), out=lse)
    torch.sub(scores, lse, out=weights).exp_()
    return lse.view(lse.shape[0], -1)


def _values(weights: Tensor, keys: Sequence[StepKeys], out: Tensor) -> None:
    """Weighted sums of each session's values."""
    for rows, target, own in zip(weights.unbind(), out.unbind(), keys, strict=True):
        far, local = own.far_v.shape[1], own.local_v.shape[1]
        of_far, of_local, _ = rows.split_with_sizes((far, local, rows.shape[2] - far - local), 2)
        torch.bmm(of_local, own.local_v, out=target)
        if far:
            target.baddbmm_(of_far, own.far_v)


def _mass(scratch: Scratch, scores: Tensor) -> Tensor:
    sessions, kv_heads, _, n = scores.shape
    return scratch.take("mass", (sessions, kv_heads, n), torch.float32, scores.device)
