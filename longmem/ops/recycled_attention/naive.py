"""Recycled attention, written as the definition reads. Slow; it is the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.ops.working_set_attention.attended import Attended, MassOf


def attend_naive(
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
    """Attention of one query over K tokens that each KV head chose for itself.

    Recycled Attention (arXiv 2411.05787, section 3): between two refreshes a token attends to the
    tokens of the last full step that scored highest, and to those that came since. Which query meets
    a key (see `ops/working_set_attention`) differs from key to key and head to head.

    Args:
        q_near: ``[H, D]`` the query rotated at its own position.
        q_far: ``[H, D]`` the same query rotated at n_local.
        k, v: ``[H_kv, K, D]`` keys as their query meets them, and values; the last is the query's own.
        far: ``[H_kv, K]`` bool, whether `q_far` meets the key.
        scaling: factor of the logits.
        empty: ``[H_kv, K]`` bool, places that hold no token; None: all hold one.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).
        sinks: ``[H]`` logits of an extra key with value zero (GPT-OSS).
        mass_of: what `Attended.mass` counts, as in `ops/working_set_attention`.
        want_lse: whether `Attended.lse` is returned.

    Returns:
        `Attended` with out ``[H, 1, D]``, mass ``[H_kv, K]`` of the keys met by `q_near`, lse ``[H, 1]``.
    """
    heads, kv_heads, n = q_near.shape[0], k.shape[0], k.shape[1]
    out = torch.empty_like(q_near)
    mass = torch.zeros(kv_heads, n, dtype=torch.float32)
    lse = torch.empty(heads, 1)
    for head in range(heads):
        kv = head // (heads // kv_heads)
        held = [j for j in range(n) if empty is None or not empty[kv, j]]
        logits = [(q_far if far[kv, j] else q_near)[head] @ k[kv, j] for j in held]
        raw = scores = torch.stack(logits).float() * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if sinks is not None:
            scores = torch.cat((scores, sinks[head].float()[None]))
        weights = torch.softmax(scores, dim=0)
        out[head] = (weights[: len(held), None] * v[kv, held].float()).sum(0)
        lse[head] = torch.logsumexp(scores, dim=0)
        for at, j in enumerate(held):
            if far[kv, j]:
                continue
            if mass_of == "attention":
                mass[kv, j] += weights[at]
            elif j < n - 1:
                mass[kv, j] += raw[at]
    return Attended(out[:, None], mass, lse if want_lse else None)
