"""Asymmetric quantisation after KIVI (arXiv 2402.02750): keys by channel, values by token.

A few key channels are large in every token, so that a key channel shares one scale over the tokens
of a group; values have no such channels, and each token's values of one head share one scale. With x
the values that share a scale and b bits (KIVI, section 3.1):

    smallest = min x,  step = (max x - min x) / (2^b - 1),  code = round((x - smallest) / step)
    decoded = code * step + smallest

`smallest` and `step` are stored as float16, the first rounded down and the second up, so that every
code fits and a decoded value is at most step / 2 off. Values beyond +-65,504 are cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MOST = torch.finfo(torch.float16).max


def quantise(x: Tensor, dim: int, levels: int) -> tuple[Tensor, Tensor]:
    """Codes of values that share a scale along `dim`.

    Args:
        x: float32.
        dim: the dimension that shares.
        levels: largest code, 255 or 15.

    Returns:
        Codes uint8 of the shape of x; scales float16 of the shape of x with `dim` of size 1 and
        (step, smallest) in one more dimension at the end.
    """
    x = x.clamp(-_MOST, _MOST)
    low, high = x.aminmax(dim=dim, keepdim=True)
    smallest = _half(low, down=True)
    step = _half((high - smallest.float()) / levels, down=False)
    at = (x - smallest.float()) / step.float().clamp(min=torch.finfo(torch.float16).tiny / 1024)
    codes = at.round_().clamp_(0, levels).to(torch.uint8)
    return codes, torch.stack((step, smallest), dim=-1)


def restore(codes: Tensor, scales: Tensor) -> Tensor:
    """Float32 values of `codes`; `scales` ``[..., 2]`` broadcast against them."""
    step, smallest = scales.float().unbind(-1)
    return (codes * step).add_(smallest)


def _half(x: Tensor, *, down: bool) -> Tensor:
    """The nearest float16 that is not above (`down`) or not below x."""
    half = x.half()
    beyond = half.float() > x if down else half.float() < x
    return torch.where(beyond, _next(half, down), half)


def _next(half: Tensor, down: bool) -> Tensor:
    """The float16 below or above finite ones. Not every device has `torch.nextafter` of float16, whose
    bits count up from 0 with the magnitude, the highest bit being the sign."""
    bits = half.view(torch.int16)
    away = (half < 0) if down else (half > 0)
    smallest = torch.full_like(bits, -(2**15) + 1 if down else 1)
    moved = torch.where(away, bits + 1, bits - 1)
    return torch.where(half == 0, smallest, moved).view(torch.float16)
