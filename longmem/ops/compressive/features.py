"""Feature maps phi of linear attention: non-negative vectors whose dot products stand for exp(q k)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURE_MAPS = ("elu", "dpfp", "learned")
"""Names that `get_feature_map` knows."""


class FeatureMap(Protocol):
    """Un-rotated queries or keys to features, in float32 whatever they come in."""

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., H, T, D]`` -> ``[..., H, T, F]`` float32, no entry below 0. H may be that of the
        queries or of the keys."""

    def width(self, dim: int) -> int:
        """F for head dimension D."""


@dataclass(frozen=True)
class EluPlusOne:
    """sigma(x) = ELU(x) + 1, so exp(x) below 0 and x + 1 above; F = D. Linear Transformers (arXiv
    2006.16236, equation 7), the map of Infini-attention."""

    def __call__(self, x: Tensor) -> Tensor:
        return F.elu(x.float()) + 1

    def width(self, dim: int) -> int:
        return dim


@dataclass(frozen=True)
class Dpfp:
    """Deterministic parameter-free projection: with r = [relu(x), relu(-x)], the products
    r_i r_(i-j) for j = 1 .. nu; F = 2 D nu. Fast weight programmers (arXiv 2102.11174, equation 37);
    the map of ARMT (arXiv 2407.04841), with nu = 3. Sparse, so that unlike keys hardly meet.

    Args:
        nu: how many products per entry.
    """

    nu: int = 3

    def __call__(self, x: Tensor) -> Tensor:
        x = x.float()
        both = torch.relu(torch.cat((x, -x), -1))  # [..., 2 D]
        return torch.cat([both * both.roll(j, -1) for j in range(1, self.nu + 1)], -1)

    def width(self, dim: int) -> int:
        return 2 * dim * self.nu


@dataclass(frozen=True, eq=False)
class Learned:
    """[softmax(x W), softmax(-x W)]; F = 2 D. Hedgehog (arXiv 2402.04347), LoLCATs (arXiv 2410.10254).
    One W per KV head, for its keys and for the queries of its group.

    Args:
        weight: W ``[H_kv, D, D]``.
    """

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        weight = self.weight.float().repeat_interleave(x.shape[-3] // self.weight.shape[0], 0)
        y = x.float() @ weight
        return torch.cat((torch.softmax(y, -1), torch.softmax(-y, -1)), -1)

    def width(self, dim: int) -> int:
        return 2 * dim


def get_feature_map(name: str, weight: Tensor | None = None) -> FeatureMap:
    """The feature map of that name: "elu", "dpfp" or "learned".

    Args:
        weight: ``[H_kv, D, D]``, for "learned".

    Raises:
        ValueError: there is no such map, or "learned" came without its weight.
    """
    if name == "elu":
        return EluPlusOne()
    if name == "dpfp":
        return Dpfp()
    if name == "learned":
        if weight is None:
            raise ValueError(
                'feature map "learned" has weights of its own, and none were given; load a gate file '
                'that holds them ("features.<layer>"), or choose "elu" or "dpfp"'
            )
        return Learned(weight)
    raise ValueError(f'there is no feature map {name!r}; choose "elu", "dpfp" or "learned"')
