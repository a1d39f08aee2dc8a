"""What calibration found, in figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from longmem.calibration.keep import Kept
from longmem.memory import Gates

Watch = Callable[[str, int, int], None]
"""Told of progress: (stage, tokens read of it, tokens of it)."""


def unwatched(stage: str, done: int, total: int) -> None:
    """A `Watch` that nobody looks at."""


@dataclass(frozen=True)
class LayerReport:
    """One layer.

    Args:
        layer: its number.
        heads_open: heads that listen to the memory, before layers were closed.
        share: mean share of the memory in the heads' outputs, over held-out queries.
        share_most: that of the head with the largest.
        removed: share of the squared error of the window alone that the mix removes on held-out text,
            all heads together.
        loss_alone: held-out loss with this layer open and all others closed; None without open heads.
        kept: whether it stays open.
    """

    layer: int
    heads_open: int
    share: float
    share_most: float
    removed: float
    loss_alone: float | None
    kept: bool


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `calibrate` gives.

    Args:
        gates: to save; closed where they would not help.
        layers: figures per layer, before layers were closed.
        kept: how layers were chosen.
        tokens, held_out: tokens calibrated and judged on.
        context: tokens of one context.
    """

    gates: Gates
    layers: tuple[LayerReport, ...]
    kept: Kept
    tokens: int
    held_out: int
    context: int

    def figures(self) -> dict[str, Any]:
        """All figures, JSON-able."""
        return {
            "tokens": self.tokens,
            "held_out": self.held_out,
            "context": self.context,
            "loss_closed": self.kept.closed,
            "loss_all_open": self.kept.all_open,
            "loss": self.kept.loss,
            "layers_open": list(self.kept.layers),
            "layers": [asdict(layer) for layer in self.layers],
        }
