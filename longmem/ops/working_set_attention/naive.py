"""The working set in one softmax, written as the definition reads. Slow; it is the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.ops.working_set_attention.attended import Attended, MassOf


def attend_naive(
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
    """Attention of T new tokens over initial tokens, looked-up blocks, pending tokens and window.

    The queries are the last T of the L local tokens. A local key at distance 0 .. n_local - 1 is
    met by the query at its true position; every other key by the query rotated at n_local
    (InfLLM, arXiv 2402.04617, section 3). Each key counts exactly once per query.

    Args:
        q_near: ``[H, T, D]`` queries rotated at their own positions.
        q_far: ``[H, T, D]`` the same queries rotated at position n_local.
        far_k, far_v: ``[H_kv, F, D]`` initial tokens and blocks, keys as `q_far` meets them.
        local_raw, local_rot: ``[H_kv, L, D]`` local keys, un-rotated and rotated; L >= T.
        local_v: ``[H_kv, L, D]`` their values.
        n_local: window in tokens.
        scaling: factor of the logits.
        keep_pending: whether local keys beyond the window are attended (else they are dropped).
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).
        sinks: ``[H]`` logits of an extra key with value zero (GPT-OSS).
        far_length: ``[H_kv]`` how many of the far keys each KV head has; None: all F.
        mass_of: what is summed per local key: its attention weights, or the logits of the queries
            that follow it (InfLLM, equation 1); None: nothing.
        want_lse, want_weights: whether these are returned.
    """
    heads, n_query, _ = q_near.shape
    kv_heads, n_far, _ = far_k.shape
    n_keys = local_raw.shape[1]
    out = torch.empty_like(q_near)
    mass = torch.zeros(kv_heads, n_keys, dtype=torch.float32)
    lse = torch.empty(heads, n_query)
    last = torch.zeros(kv_heads, heads // kv_heads, n_far + n_keys)
    for head in range(heads):
        kv = head // (heads // kv_heads)
        for t in range(n_query):
            logits, values, near, columns = [], [], [], []
            for j in range(n_far if far_length is None else int(far_length[kv])):
                columns.append(j)
                logits.append(q_far[head, t] @ far_k[kv, j])
                values.append(far_v[kv, j])
            for j in range(n_keys - n_query + t + 1):
                distance = n_keys - n_query + t - j
                if distance < n_local:
                    near.append((len(logits), j, distance))
                    logits.append(q_near[head, t] @ local_rot[kv, j])
                elif keep_pending:
                    logits.append(q_far[head, t] @ local_raw[kv, j])
                else:
                    continue
                columns.append(n_far + j)
                values.append(local_v[kv, j])
            raw = scores = torch.stack(logits).float() * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            if sinks is not None:
                scores = torch.stack([*scores, sinks[head].float()])
            weights = torch.softmax(scores, dim=0)
            out[head, t] = (weights[: len(values), None] * torch.stack(values).float()).sum(0)
            lse[head, t] = torch.logsumexp(scores, dim=0)
            if t == n_query - 1:
                last[kv, head % (heads // kv_heads), columns] = weights[: len(columns)]
            for column, j, distance in near:
                if mass_of == "attention":
                    mass[kv, j] += weights[column]
                elif distance > 0:
                    mass[kv, j] += raw[column]
    return Attended(
        out, mass if mass_of else None, lse if want_lse else None, last if want_weights else None
    )
