"""Dynamic: a layer looks up when its query has moved away from that of its last look-up."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cosine_similarity

from longmem.config import MemoryConfig
from longmem.recycling.costs import Costs
from longmem.recycling.fixed import FixedStride


class QuerySimilarity:
    """At every S-th step each layer compares its query, averaged over all query heads, with the
    average at its own last look-up, and looks up if their cosine is below s (Recycled Attention,
    later titled RefreshKV, arXiv 2411.05787: "query-comparison stride"; S = 5, s = 0.8 there).

    The far queries are compared. All are rotated by one angle, which leaves the cosine as it is
    between un-rotated queries: it says how their content moved, not how far the text went on.

    Args:
        config: its `stride` S, in decode steps, default 8, and `similarity` s, a cosine, default 0.8.
        costs: not needed here.
    """

    def __init__(self, config: MemoryConfig, costs: Costs) -> None:
        self._stride = FixedStride(config, costs)
        self._similarity = config.similarity
        self._last: dict[int, Tensor] = {}

    def due(self) -> bool:
        """As `RefreshPolicy.due`."""
        return self._stride.due()

    def decide(self, layer: int, q: Tensor) -> bool:
        """As `RefreshPolicy.decide`."""
        mean = q.float().mean((0, 1))  # [D]
        last = self._last.get(layer)
        if last is not None and cosine_similarity(mean, last, dim=0) >= self._similarity:
            return False
        self._last[layer] = mean
        return True
