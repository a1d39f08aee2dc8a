"""What the compressive memory of one layer consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor

Rule = Literal["linear", "delta", "delta_literal"]
"""How M and z grow: see `naive.update_naive`."""

RULES: tuple[str, ...] = get_args(Rule)
"""The rules there are."""

EPS = 1e-12
"""Least denominator: a memory that holds nothing for a query answers zeros, not NaN."""

COVERED = 0.01
"""Least share of |phi(x)|^2 that z covers of a key or query x, under "delta": see `naive.retrieve_naive`."""


@dataclass(eq=False)
class CompressiveState:
    """M and z of one layer. Updates replace the tensors and never write into them, so a shallow
    copy is a snapshot, and gradients reach through updates.

    Args:
        M: ``[..., H_kv, F, D_v]`` float32, sum of features times values; leading dims are batch dims.
        z: ``[..., H_kv, F]`` float32, sum of features: the normaliser.
        tokens: how many tokens were folded in.
    """

    M: Tensor
    z: Tensor
    tokens: int = 0

    @classmethod
    def empty(
        cls,
        kv_heads: int,
        width: int,
        dim: int,
        device: torch.device | str = "cpu",
        batch: tuple[int, ...] = (),
    ) -> Self:
        """A memory that holds nothing.

        Args:
            kv_heads: H_kv.
            width: F, of the feature map.
            dim: D_v.
            batch: leading dims.
        """
        shape = (*batch, kv_heads, width)
        return cls(
            torch.zeros(*shape, dim, dtype=torch.float32, device=device),
            torch.zeros(*shape, dtype=torch.float32, device=device),
        )

    def clone(self) -> Self:
        """A snapshot; it shares the tensors, which later updates leave alone."""
        return type(self)(self.M, self.z, self.tokens)

    def copy_(self, other: CompressiveState) -> None:
        """Become what `other` is now."""
        self.M, self.z, self.tokens = other.M, other.z, other.tokens

    def detach(self) -> Self:
        """A snapshot that no gradient reaches through (truncated back-propagation)."""
        return type(self)(self.M.detach(), self.z.detach(), self.tokens)

    def clear(self) -> None:
        """Hold nothing again."""
        self.M, self.z = torch.zeros_like(self.M), torch.zeros_like(self.z)
        self.tokens = 0
