"""Budget: look-ups get a share of the bytes that a reply moves."""

from __future__ import annotations

from torch import Tensor

from longmem.config import MemoryConfig
from longmem.recycling.costs import Costs


class ByteBudget:
    """Looks up as often as a share of all moved bytes pays for. Ours; no paper.

    A decode step is bound by the bytes it reads. With B bytes per step and C more for a look-up by
    all layers, a step is due when (n + 1) C <= share * ((n + 1) C + (t + 1) B), n and t being the
    look-ups and steps before it. That spaces look-ups (1 / share - 1) C / B steps apart: close
    together for a large model over little history, far apart for a small one over much. Only the
    look-up of the first step is not asked for; until it is paid off none follows.

    Args:
        config: its `lookup_share`, a share of bytes, default 0.05. `stride` is not used.
        costs: B and C, counted from shapes; asked at the first step.
    """

    asks = False
    """Whether `decide` may say no."""

    def __init__(self, config: MemoryConfig, costs: Costs) -> None:
        self._share = config.lookup_share
        self._costs = costs
        self._steps = self._look_ups = 0

    def due(self) -> bool:
        """As `RefreshPolicy.due`."""
        if self._steps == 0:
            self._counted = self._costs()  # now that the turn to reply to is read
        spent = (self._look_ups + 1) * self._counted.look_up
        moved = (self._steps + 1) * self._counted.step + spent
        due = self._steps == 0 or spent <= self._share * moved
        self._steps += 1
        self._look_ups += due
        return due

    def decide(self, layer: int, q: Tensor) -> bool:
        """As `RefreshPolicy.decide`: always."""
        return True
