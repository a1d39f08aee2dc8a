"""Recycled attention in one matrix product per KV head."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.ops.working_set_attention.attended import Attended, MassOf


def attend_fast(
    q_near: Tensor,
    q_far: Tensor,
    k: Tensor,
    v: Tensor,
    far: Tensor,
    *,
    scaling: float,
    empty: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    mass_of: MassOf = "attention",
    want_lse: bool = False,
) -> Attended:
    """As `naive.attend_naive`, which defines it; arguments, shapes and results are the same.

    Both queries meet every key in one product, which reads the keys once; that is what a step costs.
    """
    heads, dim = q_near.shape
    kv_heads, n, _ = k.shape
    group = heads // kv_heads
    both = torch.stack((q_near, q_far)).mul_(scaling).view(2, kv_heads, group, dim).transpose(0, 1)
    logits = (both.reshape(kv_heads, 2 * group, dim) @ k.mT).float()
    near_logits, far_logits = logits.view(kv_heads, 2, group, n).unbind(1)
    scores = torch.where(far[:, None], far_logits, near_logits)  # [H_kv, G, K]
    mass = None
    if mass_of == "logits":
        mass = scores.sum(1)
        mass[:, -1] = 0
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    if empty is not None:
        scores = scores.masked_fill_(empty[:, None], float("-inf"))
    lse = torch.logsumexp(scores, dim=-1).view(heads, 1)
    if sinks is not None:
        lse = torch.logaddexp(lse, sinks.float()[:, None])
    weights = scores.sub_(lse.view(kv_heads, group, 1)).exp_()
    if mass is None:
        mass = weights.sum(1)
    unseen = far if empty is None else far | empty
    out = (weights.to(v.dtype) @ v).view(heads, 1, dim)
    return Attended(out, mass.masked_fill_(unseen, 0), lse if want_lse else None)
