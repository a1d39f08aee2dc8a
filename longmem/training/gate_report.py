"""How far the gates are open: the first thing to look at when nothing is recalled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GateReport:
    """Spread of the gates of all layers and heads.

    Args:
        mean, low, high: of the gates, each in [0, 1].
        open: share of heads that give the memory 0.5 or more.
        per_layer: mean of each layer.
    """

    mean: float
    low: float
    high: float
    open: float
    per_layer: tuple[float, ...]

    @classmethod
    def of(cls, gate: Tensor) -> GateReport:
        """Of gates ``[L, H]``."""
        gate = gate.detach().float()
        return cls(
            mean=float(gate.mean()),
            low=float(gate.min()),
            high=float(gate.max()),
            open=float(torch.mean((gate >= 0.5).float())),
            per_layer=tuple(gate.mean(1).tolist()),
        )
