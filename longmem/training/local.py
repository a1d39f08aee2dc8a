"""Causal attention inside segments, differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from longmem.memory import AttentionCall
from longmem.ops.rotary import Angles, Rotary


def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, rotary: Rotary | None, segment: int, call: AttentionCall
) -> Tensor:
    """Each token attends to the tokens of its own segment up to itself.

    Args:
        q: ``[B, H, T, D]`` un-rotated queries; the first token starts a segment.
        k, v: ``[B, H_kv, T, D]`` un-rotated keys, values.
        rotary: the layer's rotation, or None. Positions count from the segment's start: a rotary
            logit depends on their difference only.
        segment: tokens of a segment.
        call: scaling, softcap and sinks of the layer.

    Returns:
        ``[B, H, T, D]``.
    """
    length = q.shape[2]
    size = min(segment, length)
    q, k, v = (_by_segment(x, size) for x in (q, k, v))  # [B, N, H, S, D]
    if rotary is not None:
        angles = rotary.angles(torch.arange(size, device=rotary.inv_freq.device), q.dtype)
        q, k = rotate(q, rotary, angles), rotate(k, rotary, angles)
    out = _attend(q, k, v, call)
    return out.transpose(1, 2).flatten(2, 3)[:, :, :length]


def rotate(x: Tensor, rotary: Rotary, angles: Angles) -> Tensor:
    """As `Rotary.rotate`, which writes in place and so takes no gradient; ``[..., T, D]``."""
    cos, sin = angles
    half = cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if rotary.style == "half":
        a, b = turned[..., :half], turned[..., half:]
        parts = [a * cos - b * sin, b * cos + a * sin, rest]
        return torch.cat(parts, -1)
    a, b = turned[..., 0::2], turned[..., 1::2]
    pairs = torch.stack((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((pairs.flatten(-2), rest), -1)


def _by_segment(x: Tensor, size: int) -> Tensor:
    """``[B, H, T, D]`` -> ``[B, N, H, S, D]``, the last segment padded with zeros at its end."""
    missing = -x.shape[2] % size
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    batch, heads, length, dim = x.shape
    return x.reshape(batch, heads, length // size, size, dim).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
    *batch, heads, size, dim = q.shape
    kv_heads = k.shape[-3]
    q = (q * call.scaling).reshape(*batch, kv_heads, -1, dim)  # the heads of a group as rows
    logits = (q @ k.mT).reshape(*batch, kv_heads, -1, size, size).float()  # [..., H_kv, G, S, S]
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    future = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
    logits = logits.masked_fill(future, -torch.inf)
    if call.sinks is not None:
        sinks = call.sinks.float().view(kv_heads, -1, 1, 1).expand(*logits.shape[:-1], 1)
        logits = torch.cat((logits, sinks), -1)
    weights = torch.softmax(logits, -1)[..., :size].to(v.dtype)
    return (weights.flatten(-3, -2) @ v).reshape(*batch, heads, size, -1)
