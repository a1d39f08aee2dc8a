"""Shelves on their way into the store and back: one set of append-only tensors per size of shelf."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.errors import CorruptDataError
from longmem.memory.pages import GroupPages
from longmem.memory.shelf import Shelf
from longmem.memory.shelf_plan import Grid, Place
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored

_PARTS = ("summaries", "blocks", "group_sizes")


@dataclass(frozen=True)
class _Home:
    """Where pages lie in the store: from `page` on, in rows of a level's tensor from `row` on."""

    page: int
    level: int
    row: int


class ShelfStore:
    """What the store holds of one layer's shelves.

    Args:
        spec: the layer.
        grid: sizes of shelves.
    """

    def __init__(self, spec: LayerSpec, grid: Grid) -> None:
        self._grid, self._heads = grid, spec.kv_heads
        self._layer = spec.index
        self._pending: list[tuple[Place, Shelf, int]] = []  # not yet stored, with their first pages
        self._given = 0  # of these, how many `export` gave
        self._homes: list[_Home] = []
        self._rows = [0] * grid.levels  # of each level's tensor, pending ones included
        self._groups: list[list[int]] = [[] for _ in range(grid.levels)]  # of stored shelves

    def add(self, place: Place, shelf: Shelf, page: int) -> None:
        """A shelf that is not yet stored has its pages from `page` on; its rows are not kept."""
        bare = Shelf(shelf.summaries, shelf.blocks, shelf.counts, shelf.rows[:0])
        self._pending.append((place, bare, page))
        self._homes.append(_Home(page, place.level, self._rows[place.level]))
        self._rows[place.level] += shelf.groups * self._heads

    def truncate(self, served: Sequence[int]) -> None:
        """Forget the shelves, none of them stored, that are not among the first so many of a level."""
        while self._pending and self._pending[-1][0].number >= served[self._pending[-1][0].level]:
            place, shelf, _ = self._pending.pop()
            self._homes.pop()
            self._rows[place.level] -= shelf.groups * self._heads

    def export(self, pages: GroupPages) -> dict[str, Tensor]:
        """The shelves that are not yet stored, tensors by name."""
        self._given = len(self._pending)
        tensors: dict[str, Tensor] = {}
        for level in range(self._grid.levels):
            own = [(shelf, page) for place, shelf, page in self._pending if place.level == level]
            if not own:
                continue
            parts = {
                "groups": [torch.tensor([shelf.groups], dtype=torch.int32) for shelf, _ in own],
                "rows": [pages.rows(page, shelf.groups * self._heads) for shelf, page in own],
                "summaries": [shelf.summaries.transpose(0, 1) for shelf, _ in own],
                "blocks": [shelf.blocks.transpose(0, 1) for shelf, _ in own],
                "group_sizes": [shelf.counts.int() for shelf, _ in own],
            }
            tensors |= {self._name(k, level): torch.cat(v).cpu() for k, v in parts.items()}
        return tensors

    def commit(self, n_pages: int, *, kept: bool) -> int:
        """What `export` gave is durable, or, where nothing is `kept`, never will be; of `n_pages` pages
        gives the first that is neither."""
        self._pending = self._pending[self._given :] if kept else []
        self._given = 0
        return self._pending[0][2] if self._pending else n_pages

    def read(self, source: BlockSource, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
        """The rows ``[n, g, D]`` of spans of stored pages, in any thread."""
        parts = [list(self._located(*span)) for span in spans]
        found: dict[tuple[int, int], Tensor] = {}
        for level in sorted({level for part in parts for level, _ in part}):
            wanted = [rows for part in parts for of, rows in part if of == level]
            read = source.read_blocks(self._name("rows", level), wanted)
            found |= {(level, first): rows for (first, _), rows in zip(wanted, read, strict=True)}
        return [torch.cat([found[level, rows[0]] for level, rows in part]) for part in parts]

    def load(self, stored: Stored) -> list[int]:
        """How many shelves of each level there are in the store.

        Raises:
            CorruptDataError: the stored tensors do not belong together.
        """
        for level in range(self._grid.levels):
            name = self._name("groups", level)
            n = stored.length(name)
            groups = stored.part(name, 0, n).tolist() if n else []
            rows = {k: stored.length(self._name(k, level)) for k in ("rows", *_PARTS)}
            total = sum(groups)
            expected = dict.fromkeys(rows, total) | {"rows": total * self._heads}
            if rows != expected:
                raise self.incomplete(f"{n} shelves with {rows} rows, {expected} expected")
            self._groups[level], self._rows[level] = groups, total * self._heads
        return [len(groups) for groups in self._groups]

    def stored(self, stored: Stored, place: Place) -> Shelf:
        """A shelf of the store, on the host, without its rows."""
        groups = self._groups[place.level]
        start = sum(groups[: place.number])
        stop = start + groups[place.number]
        summaries, blocks, counts = (
            stored.part(self._name(part, place.level), start, stop) for part in _PARTS
        )
        rows = summaries.new_zeros(0)
        return Shelf(summaries.transpose(0, 1), blocks.transpose(0, 1), counts.float(), rows)

    def hold(self, place: Place, page: int) -> None:
        """A stored shelf's pages are numbered from `page` on."""
        row = sum(self._groups[place.level][: place.number]) * self._heads
        self._homes.append(_Home(page, place.level, row))

    def incomplete(self, what: str) -> CorruptDataError:
        """The error for tensors that do not belong together."""
        return CorruptDataError(
            f"the block index of layer {self._layer} is stored incompletely: {what}; open it with "
            "rebuild=True"
        )

    def _located(self, start: int, stop: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """The rows of a span of pages: level, and rows of its tensor, in the order of the pages."""
        homes = list(self._homes)  # shelves may be added meanwhile
        at = bisect_right(homes, start, key=lambda home: home.page) - 1
        while start < stop:
            home = homes[at]
            end = min(stop, homes[at + 1].page) if at + 1 < len(homes) else stop
            yield home.level, (home.row + start - home.page, home.row + end - home.page)
            start, at = end, at + 1

    def _name(self, part: str, level: int) -> str:
        return f"shelf_{part}.{self._layer}.{self._grid.size(level)}x{self._grid.group}"
