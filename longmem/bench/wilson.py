"""Wilson's score interval: the range a measured share stands for."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Share:
    """`hits` out of `total`, with its 95 % interval (Wilson 1927).

    Hits may be fractions, where a question has several answers and some of them were right. A score
    between 0 and 1 varies at most as much as one that is either, so the interval is then too wide
    rather than too narrow.
    """

    hits: float
    total: int

    @property
    def value(self) -> float:
        """The share, 0 to 1; 0 of nothing is 0."""
        return self.hits / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end, 0 to 1."""
        if not self.total:
            return 0.0, 1.0
        z, n, p = 1.959964, self.total, self.value
        centre = p + z * z / (2 * n)
        spread = z * sqrt(max(0.0, p * (1 - p)) / n + z * z / (4 * n * n))
        scale = 1 + z * z / n
        return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.hits:.5g}/{self.total} = {self.value:.1%} [{low:.1%}, {high:.1%}]"
