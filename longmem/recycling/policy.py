"""What a refresh policy is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from longmem.config import MemoryConfig
from longmem.recycling.costs import Costs


class RefreshPolicy(Protocol):
    """Decides during one reply when blocks are looked up again.

    It may depend on the settings, on counted steps and bytes, and on queries, never on time: the
    text of a reply must not depend on the machine's load. At the first step all layers look up, so
    that no recycled state crosses a turn. One whose `decide` never says no may have an attribute `asks`
    that is False: its look-ups can be done without asking layer by layer (`longmem.graphs`).
    """

    def due(self) -> bool:
        """Asked once per decode step, before it: may layers look up at this one?"""

    def decide(self, layer: int, q: Tensor) -> bool:
        """At a step that is due: whether `layer` looks up, given its far queries ``[H, T, D]``.

        Rotated at one and the same position, n_local, they are comparable between steps.
        """


MakePolicy = Callable[[MemoryConfig, Costs], RefreshPolicy]
"""Makes the policy of one reply from the engine's settings and what its steps cost."""
