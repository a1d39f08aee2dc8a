"""Compressive memory as matrix products: all heads of a chunk, or all chunks of a call, at once."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.ops.compressive.features import FeatureMap
from longmem.ops.compressive.state import COVERED, EPS, RULES, CompressiveState, Rule


def retrieve(q: Tensor, state: CompressiveState, rule: Rule = "linear") -> tuple[Tensor, Tensor]:
    """As `naive.retrieve_naive`, which defines it; leading batch dims are allowed.

    Args:
        q: ``[..., H, T, F]`` features of the queries.
        state: M ``[..., H_kv, F, D_v]``, z ``[..., H_kv, F]``.
        rule: the one M and z grew by.

    Returns:
        Numerator ``[..., H, T, D_v]`` and mass ``[..., H, T]``, float32.
    """
    q = q.float()
    held, mass = _read(q, state.M, state.z)
    if rule == "delta":
        held = held * (_covered(q, mass) / COVERED).clamp(max=1)[..., None]
    return held, mass


def update(
    state: CompressiveState,
    k: Tensor,
    v: Tensor,
    rule: Rule,
    decay: float | Tensor = 1.0,
) -> None:
    """As `naive.update_naive`, which defines it; leading batch dims are allowed.

    Args:
        state: changed in place: it gets new tensors.
        k: ``[..., H_kv, T, F]`` features of the keys.
        v: ``[..., H_kv, T, D_v]`` values.
        rule: "linear", "delta" or "delta_literal".
        decay: share of M and z that outlives this chunk, one number or ``[H_kv]``.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"there is no rule {rule!r}; choose one of {', '.join(RULES)}")
    if k.shape[-2] == 0:
        return
    k, v = k.float(), v.float()
    M, z = state.M, state.z
    if isinstance(decay, Tensor) or decay != 1:
        kept = torch.as_tensor(decay, dtype=torch.float32, device=M.device)[..., None]
        M, z = kept[..., None] * M, kept * z
    added, new = v, k
    if rule != "linear":
        held, mass = k @ M, (k @ z[..., None])[..., 0]  # [..., H_kv, T, D_v], [..., H_kv, T]
        if rule == "delta":
            covered = _covered(k, mass)
            held = held * (covered / COVERED).clamp(max=1)[..., None]
            new = k * (1 - covered).clamp(0, 1)[..., None]
        added = v - held / mass.clamp(min=EPS)[..., None]
    state.M, state.z = M + k.mT @ added, z + new.sum(-2)
    state.tokens += k.shape[-2]


def mix(
    out: Tensor,
    q: Tensor,
    lse: Tensor | None,
    state: CompressiveState,
    features: FeatureMap,
    rule: Rule,
    gate: Tensor,
) -> Tensor:
    """Join what the memory holds for queries with what they attended to exactly.

    Args:
        out: ``[H, T, D]`` attention output.
        q: ``[H, T, D]`` un-rotated queries.
        lse: ``[H, T]`` log of attention's denominator; None where the gate alone decides.
        state: M ``[H_kv, F, D]`` and z ``[H_kv, F]``.
        features: the feature map.
        rule: the one M and z grew by.
        gate: ``[H]`` float32: the memory's share of the output (Infini-attention, arXiv 2404.07143,
            equation 10); with `lse` the log of the factor of its mass, which is then one more group of
            attended keys.

    Returns:
        ``[H, T, D]``, of the dtype of `out`.
    """
    held, mass = retrieve(features(q), state, rule)  # [H, T, D], [H, T]
    mass = mass.clamp(min=EPS)
    share = gate[:, None].expand_as(mass)
    if lse is not None:
        share = torch.sigmoid(share + mass.log() - lse)
    value = held / mass[..., None]
    return torch.lerp(out.float(), value, share[..., None]).to(out.dtype)


def fold(
    k: Tensor,
    v: Tensor,
    state: CompressiveState,
    features: FeatureMap,
    *,
    chunk: int,
    rule: Rule,
    decay: float | Tensor = 1.0,
) -> None:
    """Fold whole chunks one after the other.

    Args:
        k, v: ``[H_kv, T, D]`` un-rotated keys, and values; T is a multiple of `chunk`.
        state: changed in place: it gets new tensors.
        features: the feature map.
        chunk: tokens folded at once.
        rule, decay: as in `update`.
    """
    for start in range(0, k.shape[1], chunk):
        part = slice(start, start + chunk)
        update(state, features(k[:, part]), v[:, part], rule, decay)


def read_and_fold(
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
    """As `naive.read_and_fold_naive`, which defines it; leading batch dims are allowed.

    Under the linear rule without decay the memory before each chunk is a running sum, so all chunks
    are one batch of matrix products; otherwise the chunks follow one another.

    Args:
        q: ``[..., H, S, D]`` un-rotated queries of the last S <= T tokens.
        k, v: ``[..., H_kv, T, D]``, ``[..., H_kv, T, D_v]``; they start where a chunk starts.
        state: changed in place: it gets new tensors.
        features: the feature map.
        chunk: tokens folded at once, at least 1.
        rule, decay: as in `update`.

    Returns:
        Numerator ``[..., H, S, D_v]`` and mass ``[..., H, S]``, float32.
    """
    skipped = k.shape[-2] - q.shape[-2]
    q, k = features(q), features(k)
    plain = rule == "linear" and not isinstance(decay, Tensor) and decay == 1
    if plain and skipped == 0 and k.shape[-2] > chunk:
        return _running_sums(q, k, v.float(), state, chunk)
    held, mass = [], []
    for start in range(0, k.shape[-2], chunk):
        stop = min(start + chunk, k.shape[-2])
        mine = slice(max(start - skipped, 0), max(stop - skipped, 0))
        numerator, weight = retrieve(q[..., mine, :], state, rule)
        held.append(numerator)
        mass.append(weight)
        if stop - start == chunk:
            part = slice(start, stop)
            update(state, k[..., part, :], v[..., part, :], rule, decay)
    return torch.cat(held, -2), torch.cat(mass, -1)


def _covered(x: Tensor, mass: Tensor) -> Tensor:
    """``[..., T]``: how much of features ``[..., T, F]`` z covers, 1 for all; no gradient goes through."""
    return (mass / x.square().sum(-1).clamp(min=EPS)).detach()


def _read(q: Tensor, M: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """`retrieve` on tensors. The heads of a group lie side by side: no copy of M per query head."""
    *batch, heads, n_query, width = q.shape
    kv_heads = M.shape[-3]
    rows = q.reshape(*batch, kv_heads, heads // kv_heads * n_query, width)
    held = (rows @ M).reshape(*batch, heads, n_query, M.shape[-1])
    return held, (rows @ z[..., None]).reshape(*batch, heads, n_query)


def _running_sums(
    q: Tensor, k: Tensor, v: Tensor, state: CompressiveState, chunk: int
) -> tuple[Tensor, Tensor]:
    """The linear rule over many chunks; q, k are features ``[..., T, F]``."""
    n_keys, n_chunks = k.shape[-2], -(-k.shape[-2] // chunk)
    whole = n_keys // chunk
    q_c, k_c, v_c = (_by_chunk(t, chunk, n_chunks) for t in (q, k, v))  # [N, ..., chunk, .]
    steps_M = k_c[:whole].mT @ v_c[:whole]  # [N, ..., H_kv, F, D_v]
    steps_z = k_c[:whole].sum(-2)  # [N, ..., H_kv, F]
    sums_M = torch.cat((state.M[None], steps_M)).cumsum(0)
    sums_z = torch.cat((state.z[None], steps_z)).cumsum(0)
    held, mass = _read(q_c, sums_M[:n_chunks], sums_z[:n_chunks])
    state.M, state.z = sums_M[whole], sums_z[whole]
    state.tokens += whole * chunk
    held = held.movedim(0, -3).flatten(-3, -2)[..., :n_keys, :]
    return held, mass.movedim(0, -2).flatten(-2)[..., :n_keys]


def _by_chunk(x: Tensor, chunk: int, n_chunks: int) -> Tensor:
    """``[..., T, W]`` -> ``[N, ..., chunk, W]``, the last chunk padded with zeros."""
    missing = n_chunks * chunk - x.shape[-2]
    if missing:
        x = torch.nn.functional.pad(x, (0, 0, 0, missing))
    return x.reshape(*x.shape[:-2], n_chunks, chunk, x.shape[-1]).movedim(-3, 0)
