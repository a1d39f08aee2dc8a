"""Fixed stride: look up at every S-th step."""

from __future__ import annotations

from torch import Tensor

from longmem.config import MemoryConfig
from longmem.recycling.costs import Costs


class FixedStride:
    """All layers look up at steps 0, S, 2 S ... of a reply (Recycled Attention, arXiv
    2411.05787).

    Args:
        config: its `stride` S, in decode steps, default 8; 1 looks up at every step.
        costs: not needed here.
    """

    asks = False
    """Whether `decide` may say no."""

    def __init__(self, config: MemoryConfig, costs: Costs) -> None:
        self._stride = config.stride
        self._step = 0

    def due(self) -> bool:
        """As `RefreshPolicy.due`."""
        due = self._step % self._stride == 0
        self._step += 1
        return due

    def decide(self, layer: int, q: Tensor) -> bool:
        """As `RefreshPolicy.decide`: always."""
        return True
