"""Compressive memory written as the papers read: one head, one token at a time. The oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.ops.compressive.features import FeatureMap
from longmem.ops.compressive.state import COVERED, EPS, CompressiveState, Rule


def retrieve_naive(
    q: Tensor, state: CompressiveState, rule: Rule = "linear"
) -> tuple[Tensor, Tensor]:
    """What the memory holds for each query (Infini-attention, arXiv 2404.07143, equation 7).

    Args:
        q: ``[H, T, F]`` features of the queries; head h reads KV head h // (H / H_kv).
        state: M ``[H_kv, F, D_v]``, z ``[H_kv, F]``.
        rule: the one M and z grew by. Under "delta" M may hold something where z has nothing, and
            the quotient there has no bound; so the numerator is made smaller by as much as the mass
            is below `COVERED` |phi(q)|^2.

    Returns:
        Numerator phi(q) M ``[H, T, D_v]`` and mass phi(q) z ``[H, T]``, float32. Their quotient is the
        read-out of the paper; mixing by log-sum-exp needs them apart.
    """
    heads, n_query, _ = q.shape
    held = torch.empty(heads, n_query, state.M.shape[-1])
    mass = torch.empty(heads, n_query)
    for h in range(heads):
        kv = h // (heads // state.M.shape[0])
        for t in range(n_query):
            query = q[h, t].float()
            held[h, t], mass[h, t] = query @ state.M[kv], query @ state.z[kv]
            if rule == "delta":
                covered = float(mass[h, t]) / max(float(query @ query), EPS)
                held[h, t] *= min(1.0, covered / COVERED)
    return held, mass


def update_naive(
    state: CompressiveState,
    k: Tensor,
    v: Tensor,
    rule: Rule,
    decay: float | Tensor = 1.0,
) -> None:
    """Fold one chunk into the memory. Every token sees the memory as it was before the chunk.

    "linear" (equation 8): M += phi(k)^T v, z += phi(k).
    "delta" (equation 9): M += phi(k)^T (v - what phi(k) retrieves), so that a binding the memory
    already holds leaves it as it is; z += gamma phi(k) with gamma = 1 - phi(k) z / |phi(k)|^2, in
    [0, 1], a constant to gradients: z grows only by what is new (ARMT, arXiv 2407.04841, section
    3.2). With dense features or long chunks the first chunk covers all: see the README.
    "delta_literal": M as in "delta", z as in "linear", as Infini-attention prints it: a binding
    told again is then retrieved as v / 2.

    Args:
        state: changed in place: it gets new tensors.
        k: ``[H_kv, T, F]`` features of the keys.
        v: ``[H_kv, T, D_v]`` values.
        rule: see above.
        decay: share of M and z that outlives this chunk, one number or ``[H_kv]``; applied first.
    """
    M, z = state.M.clone(), state.z.clone()
    for h in range(M.shape[0]):
        kept = decay[h] if isinstance(decay, Tensor) else decay
        M[h], z[h] = kept * M[h], kept * z[h]
        old_M, old_z = M[h].clone(), z[h].clone()
        for t in range(k.shape[1]):
            key, value = k[h, t].float(), v[h, t].float()
            mass, new = key @ old_z, 1.0
            known = 1.0
            if rule == "delta":
                covered = float(mass) / max(float(key @ key), EPS)
                new, known = min(1.0, max(0.0, 1 - covered)), min(1.0, covered / COVERED)
            if rule != "linear":
                value = value - known * (key @ old_M) / mass.clamp(min=EPS)
            M[h] += key[:, None] * value
            z[h] += new * key
    state.M, state.z, state.tokens = M, z, state.tokens + k.shape[1]


def read_and_fold_naive(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: CompressiveState,
    features: FeatureMap,
    *,
    chunk: int,
    rule: Rule,
    decay: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """Read the memory for the last S of T tokens and fold whole chunks, retrieving before updating.

    The T tokens start where a chunk starts. A query sees the chunks before its own. The last tokens
    (T mod chunk) belong to a chunk that is not whole yet and are not folded: hand them in again,
    before the tokens that follow them.

    Args:
        q: ``[H, S, D]`` un-rotated queries of the last S <= T tokens.
        k, v: ``[H_kv, T, D]`` un-rotated keys, ``[H_kv, T, D_v]`` values.
        state: changed in place: it gets new tensors.
        features: the feature map.
        chunk: tokens folded at once, at least 1.
        rule, decay: as in `update_naive`.

    Returns:
        As `retrieve_naive`: ``[H, S, D_v]`` and ``[H, S]``, float32.
    """
    n_keys, n_query = k.shape[1], q.shape[1]
    held, mass = [], []
    for t in range(n_keys):
        if t >= n_keys - n_query:
            at = t - (n_keys - n_query)
            one, its_mass = retrieve_naive(features(q[:, at : at + 1]), state, rule)
            held.append(one)
            mass.append(its_mass)
        if (t + 1) % chunk == 0:
            whole = slice(t + 1 - chunk, t + 1)
            update_naive(state, features(k[:, whole]), v[:, whole], rule, decay)
    return torch.cat(held, 1), torch.cat(mass, 1)
