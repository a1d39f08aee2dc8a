"""The working set in one softmax: matrix products over whole ranges of keys."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from longmem.ops.working_set_attention.attended import Attended, MassOf


def attend_blocked(
    q_near: Tensor,
    q_far: Tensor,
    far_k: Tensor,
    far_v: Tensor,
    local_raw: Tensor,
    local_rot: Tensor,
    local_v: Tensor,
    *,
    n_local: int,
    scaling: float,
    keep_pending: bool = True,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    far_length: Tensor | None = None,
    mass_of: MassOf | None = "attention",
    want_lse: bool = False,
    want_weights: bool = False,
) -> Attended:
    """As `naive.attend_naive`, which defines it; arguments, shapes and results are the same.

    The local keys fall into three ranges: ``[0, near)`` beyond the window of every query,
    ``[near, pending)`` beyond that of some, ``[pending, L)`` inside that of the last query. A
    single query has no middle range, so decoding computes each logit once and masks nothing.
    """
    heads, n_query, dim = q_near.shape
    kv_heads, n_far, _ = far_k.shape
    n_keys = local_raw.shape[1]
    rows = heads // kv_heads * n_query
    near = max(0, n_keys - n_query - n_local + 1)
    pending = max(0, n_keys - n_local)
    q_near = (q_near * scaling).reshape(kv_heads, rows, dim)
    q_far = (q_far * scaling).reshape(kv_heads, rows, dim)

    scores = q_near.new_empty(kv_heads, rows, n_far + n_keys, dtype=torch.float32)
    local = scores[..., n_far:]
    local[..., near:] = q_near @ local_rot[:, near:].mT
    if n_far:
        scores[..., :n_far] = q_far @ far_k.mT
    if pending and keep_pending:
        _pending_scores(local, q_far, local_raw, near, pending, n_query, n_local)
    mass = None
    if mass_of == "logits":
        mass = _follower_logits(scores[..., n_far:], near, pending, n_query, n_local)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if far_length is not None:
        unused = torch.arange(n_far, device=scores.device) >= far_length[:, None]
        scores[..., :n_far].masked_fill_(unused[:, None], float("-inf"))
    if pending and not keep_pending:
        _mask_pending(local, near, pending, n_query, n_local)
    if n_query > 1:
        _mask_future(local, n_query)
    lse = _lse(scores, sinks, n_query).view(heads, n_query) if want_lse else None
    weights = _softmax(scores, sinks, n_query)

    if mass_of == "attention":
        mass = _window_mass(weights[..., n_far:], near, pending, n_query, n_local)
    last = _by_query(weights, n_query)[:, :, -1].clone() if want_weights else None
    weights = weights.to(local_v.dtype)
    out = weights[..., n_far:] @ local_v
    if n_far:
        out.baddbmm_(weights[..., :n_far], far_v)
    return Attended(out.view(heads, n_query, dim), mass, lse, last)


def _by_query(x: Tensor, n_query: int) -> Tensor:
    """``[H_kv, G * T, n]`` -> ``[H_kv, G, T, n]``, a view."""
    return x.view(x.shape[0], -1, n_query, x.shape[-1])


@lru_cache(maxsize=32)
def _band(rows: int, columns: int, offset: int, device: torch.device) -> Tensor:
    """``[rows, columns]`` bool: row - column >= offset. Kept, because spans of one length come in
    thousands; never an inference tensor, because training may ask for the same one."""
    with torch.inference_mode(False):
        row = torch.arange(rows, device=device)
        return row[:, None] - torch.arange(columns, device=device) >= offset


def _beyond(
    near: int, pending: int, n_keys: int, n_query: int, n_local: int, like: Tensor
) -> Tensor:
    """``[T, pending - near]``: whether the local key is beyond the window of query t."""
    offset = n_local - (n_keys - n_query - near)
    return _band(n_query, pending - near, offset, like.device)


def _pending_scores(
    local: Tensor,
    q_far: Tensor,
    local_raw: Tensor,
    near: int,
    pending: int,
    n_query: int,
    n_local: int,
) -> None:
    """Overwrite the logits of keys beyond the window by those of the far query, in place."""
    far = q_far @ local_raw[:, :pending].mT
    local[..., :near] = far[..., :near]
    if pending > near:
        mask = _beyond(near, pending, local.shape[-1], n_query, n_local, local)
        middle = _by_query(local[..., near:pending], n_query)
        torch.where(mask, _by_query(far[..., near:], n_query), middle, out=middle)


def _mask_pending(local: Tensor, near: int, pending: int, n_query: int, n_local: int) -> None:
    """Drop the keys beyond the window, in place (layers with a sliding window of their own)."""
    local[..., :near] = float("-inf")
    if pending > near:
        mask = _beyond(near, pending, local.shape[-1], n_query, n_local, local)
        _by_query(local[..., near:pending], n_query).masked_fill_(mask, float("-inf"))


def _mask_future(local: Tensor, n_query: int) -> None:
    """Hide from each query the tokens after it, in place."""
    future = _band(n_query, n_query, 1, local.device).mT
    _by_query(local[..., -n_query:], n_query).masked_fill_(future, float("-inf"))


def _softmax(scores: Tensor, sinks: Tensor | None, n_query: int) -> Tensor:
    """Softmax over the last dim; a sink adds to the denominator only."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    sink = sinks.float().view(scores.shape[0], -1, 1).repeat_interleave(n_query, dim=1)
    top = torch.maximum(scores.amax(-1, keepdim=True), sink)
    scores.sub_(top).exp_()
    return scores.div_(scores.sum(-1, keepdim=True) + (sink - top).exp_())


def _lse(scores: Tensor, sinks: Tensor | None, n_query: int) -> Tensor:
    """``[H_kv, G * T]``: log of the softmax's denominator."""
    lse = torch.logsumexp(scores, dim=-1)
    if sinks is None:
        return lse
    sink = sinks.float().view(scores.shape[0], -1).repeat_interleave(n_query, dim=1)
    return torch.logaddexp(lse, sink)


def _follower_logits(logits: Tensor, near: int, pending: int, n_query: int, n_local: int) -> Tensor:
    """``[H_kv, L]``: logits per local key from the later queries that had it in their window."""
    n_keys = logits.shape[-1]
    query = torch.arange(n_keys - n_query, n_keys, device=logits.device)
    distance = query[:, None] - torch.arange(near, n_keys, device=logits.device)
    follows = (distance > 0) & (distance < n_local)
    mass = logits.new_zeros(logits.shape[0], n_keys)
    mass[:, near:] = (_by_query(logits[..., near:], n_query) * follows).sum((1, 2))
    return mass


def _window_mass(weights: Tensor, near: int, pending: int, n_query: int, n_local: int) -> Tensor:
    """``[H_kv, L]``: mass per local key from the queries that had it in their window."""
    mass = weights.sum(1)
    mass[:, :near] = 0
    if pending > near:
        mask = _beyond(near, pending, weights.shape[-1], n_query, n_local, weights)
        middle = _by_query(weights[..., near:pending], n_query)
        mass[:, near:pending] = middle.masked_fill(mask, 0).sum((1, 2))
    return mass
