"""Which blocks lie on which shelf, by how many blocks there are and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MERGED = 4
"""Shelves that are merged into one of the next size. Eight, shelves of 8,192 blocks, found no more on the
questions of docs/performance.md, and took twice the memory while they were merged."""
_LATENESS = 8
"""A shelf serves look-ups once so large a part of its blocks again is there: until then it is formed."""


@dataclass(frozen=True)
class Grid:
    """How look-ups go through groups; see `MemoryConfig`.

    Args:
        above: candidates above which they do.
        shelf: blocks of the smallest shelves.
        group: rows of a group.
        probe: groups per KV head that a look-up reads.
        probe_reading: as `probe`, where the look-up is for a span of several tokens.
        levels: sizes of shelves, each `MERGED` times the one before.
    """

    above: int
    shelf: int
    group: int
    probe: int
    probe_reading: int
    levels: int = 2

    def size(self, level: int) -> int:
        """Blocks of a shelf."""
        return int(self.shelf * MERGED**level)

    def begun(self, level: int, blocks: int) -> int:
        """Shelves of a level whose forming has begun when there are so many blocks: a small one's when
        its last block closes, a merged one's when those it is made of serve."""
        return self.served(level - 1, blocks) // MERGED if level else blocks // self.shelf

    def served(self, level: int, blocks: int) -> int:
        """Shelves of a level that have come to serve look-ups when there are so many blocks."""
        size = self.size(level)
        return max(0, (blocks - size // _LATENESS) // size)

    def serves_at(self, place: Place) -> int:
        """Number of blocks at which a shelf comes to serve look-ups."""
        return self.stop(place) + self.size(place.level) // _LATENESS

    def first(self, place: Place) -> int:
        """First block of a shelf."""
        return place.number * self.size(place.level)

    def stop(self, place: Place) -> int:
        """The block behind the last one of a shelf."""
        return (place.number + 1) * self.size(place.level)

    def parts(self, place: Place) -> list[Place]:
        """The shelves that a merged one is made of."""
        first = place.number * MERGED
        return [Place(place.level - 1, n) for n in range(first, first + MERGED)]

    def serving(self, counts: list[int]) -> Iterator[Place]:
        """The shelves that serve, in the order of their blocks, when so many of each level ever did."""
        at = 0
        for level in reversed(range(self.levels)):
            for number in range(at // self.size(level), counts[level]):
                place = Place(level, number)
                at = self.stop(place)
                yield place


@dataclass(frozen=True)
class Place:
    """A shelf: the `number`-th of its level, counted from 0."""

    level: int
    number: int
