"""Rotary position embedding (RoFormer, arXiv 2104.09864) at positions without limit.

A pair of dimensions (a, b) at position p is turned by the angle p * inv_freq. Angles are taken in
float64, because at position 1,000,000 a float32 angle is off by up to 0.03 rad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Style = Literal["half", "interleaved"]
Angles = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Rotary:
    """How one kind of layer rotates its queries and keys.

    Args:
        inv_freq: ``[R / 2]`` float64, radians per position; R <= D dimensions are rotated.
        style: which dimensions pair up: (i, i + R/2) "half", or (2i, 2i + 1) "interleaved".
    """

    inv_freq: Tensor
    style: Style

    def angles(self, positions: Tensor, dtype: torch.dtype) -> Angles:
        """cos and sin, each ``[T, R / 2]``, of positions ``[T]`` (any integer dtype)."""
        angle = positions.to(torch.float64)[:, None] * self.inv_freq
        return angle.cos().to(dtype), angle.sin().to(dtype)

    def rotate(
        self, x: Tensor, angles: Angles, out: Tensor | None = None, spare: Tensor | None = None
    ) -> Tensor:
        """Rotate ``[..., T, D]`` by `angles`; dimensions from R on are passed through.

        Args:
            out: where to write, of the shape x and `angles` broadcast to; it must not overlap `x`.
            spare: ``[..., R / 2]`` of that shape, to compute in; None allocates it.
        """
        cos, sin = angles
        half = cos.shape[-1]
        out = torch.empty_like(x) if out is None else out
        if self.style == "half":
            a, b = x[..., :half], x[..., half : 2 * half]
            out_a, out_b = out[..., :half], out[..., half : 2 * half]
        else:
            a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
            out_a, out_b = out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2]
        torch.mul(a, cos, out=out_a).sub_(torch.mul(b, sin, out=spare))
        torch.mul(b, cos, out=out_b).add_(torch.mul(a, sin, out=spare))
        if 2 * half < x.shape[-1]:
            out[..., 2 * half :] = x[..., 2 * half :]
        return out
