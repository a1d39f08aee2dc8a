"""How much each query head listens to the compressive memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Gates:
    """The gates of one model.

    Args:
        gate: ``[L, H]`` float32 in [0, 1]; 0 is closed: the head hears nothing of the memory.
        offset: ``[L, H]`` float32: c_h of mix = "lse", -inf is closed; None for mix = "gate".
        decay: ``[L, H_kv]`` float32 in [0, 1], in place of Compressive.decay; None: that one.
        features: per layer ``[H_kv, D, D]``, the maps of feature_map = "learned".
    """

    gate: Tensor
    offset: Tensor | None = None
    decay: Tensor | None = None
    features: Mapping[int, Tensor] = field(default_factory=dict)
