"""Two memories on the same questions: McNemar's counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Pairs:
    """Questions that both, one, or neither answered right."""

    both: int
    only_first: int
    only_second: int
    neither: int

    @property
    def p(self) -> float:
        """How likely so uneven a split of the questions they disagree on is if they are equally
        good: the exact two-sided test of McNemar (1947)."""
        n, few = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail = sum(comb(n, i) for i in range(few + 1))
        return min(1.0, float(2 * tail / 2**n))


def pairs(first: Sequence[bool], second: Sequence[bool]) -> Pairs:
    """Count; the same questions in the same order.

    Raises:
        ValueError: they are not equally many.
    """
    both = list(zip(first, second, strict=True))
    return Pairs(
        both.count((True, True)),
        both.count((True, False)),
        both.count((False, True)),
        both.count((False, False)),
    )
