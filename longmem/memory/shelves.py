"""The rows of an index on shelves of consecutive blocks, each cut into groups of similar rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from longmem.memory.forming import Forming
from longmem.memory.pages import GroupPages
from longmem.memory.serving import Held, Serving
from longmem.memory.shelf import ABSENT, Shelf, form, rows_of_shelves
from longmem.memory.shelf_plan import Grid, Place
from longmem.memory.shelf_store import ShelfStore
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.memory.uploading import downloaded_later
from longmem.retrieval import IndexRows

RowsOf = Callable[[int, int], IndexRows]
"""The rows of blocks first .. stop, as the index holds them."""


@dataclass(frozen=True)
class _Before:
    """How things stood before there were `blocks` blocks."""

    blocks: int
    serving: Serving
    served: tuple[int, ...]
    pages: int


class Shelves:
    """The shelves of one layer, counted from block 0.

    A shelf's rows are cut per KV head into groups of ``grid.group`` similar rows. Of every group that
    serves look-ups a summary and the block of each row stay in memory; the rows themselves are pages,
    which may lie in the store alone. Small shelves are merged into large ones: what matters is how
    similar the rows of a group are, which grows with the rows there are to group. (Groups of
    consecutive rows lose a fifth of the evidence where groups of similar ones lose none, since
    neighbouring turns are about different things.) Another thread forms them. Which shelves serve
    depends on the number of blocks alone (`Grid`), so that choices do not depend on passes, commits
    or rewinds.

    Args:
        spec: the layer.
        grid: sizes.
    """

    def __init__(self, spec: LayerSpec, grid: Grid) -> None:
        self.grid = grid
        self._heads = spec.kv_heads
        self.pages = GroupPages(grid.group, spec.dim, spec.dtype, spec.device)
        self._store = ShelfStore(spec, grid)
        self._serving = Serving.nothing(spec, grid.group)
        self._served = [0] * grid.levels  # shelves of each level that serve or did
        self._forming = Forming()
        self._before: list[_Before] = []  # since the last commit, oldest first

    @property
    def stop(self) -> int:
        """Blocks before this one are on shelves that serve."""
        return max(n * self.grid.size(level) for level, n in enumerate(self._served))

    @property
    def serving(self) -> Serving:
        """What look-ups go through now; another object after each change."""
        return self._serving

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.resident_bytes + self.pages.bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of what never leaves memory: summaries, and which block a row is of."""
        return self._serving.bytes

    def attach(self, source: BlockSource) -> None:
        """Read pages that are not in memory from `source`."""
        self.pages.reader = partial(self._store.read, source)
        self._forming.keep(lambda place: False)  # what reads from another source begins anew

    def grow(self, blocks: int, rows_of: RowsOf) -> None:
        """There are `blocks` blocks now: begin to form the shelves that are full, and let those serve
        that are due.

        Raises:
            CorruptDataError: rows to merge were stored and cannot be read.
        """
        for level in range(self.grid.levels):
            for number in range(self._served[level], self.grid.begun(level, blocks)):
                place = Place(level, number)
                if place not in self._forming:
                    self._forming.start(place, self._work(place, rows_of))
            if self._served[level] < self.grid.served(level, blocks):
                place = Place(level, self._served[level])
                self._serve(place, self._forming.take(place), blocks)

    def truncate(self, blocks: int) -> None:
        """Forget the blocks from `blocks` on."""
        while self._before and self._before[-1].blocks > blocks:
            before = self._before.pop()
            self._serving, self._served = before.serving, list(before.served)
            self.pages.truncate(before.pages)
        self._store.truncate(self._served)
        self._forming.keep(lambda place: place.number < self.grid.begun(place.level, blocks))

    def release(self, first: int) -> None:
        """What `export` gave is durable, and blocks before `first` will never be candidates again: let
        go of shelves that hold no other, once they are half of all, and of those that were merged."""
        durable = self._store.commit(len(self.pages), kept=self.pages.reader is not None)
        held = set(self._serving.shelves)
        for before in self._before:
            self._drop(set(before.serving.shelves) - held)
        self._before = []
        gone = [shelf for shelf in self._serving.shelves if shelf.stop <= first]
        self._drop(set(gone))
        if 2 * sum(shelf.groups for shelf in gone) > len(self._serving.counts):
            self._serving = self._serving.without(len(gone))
        self.pages.commit(durable)

    def candidates(self, first: int) -> tuple[int, Tensor, Tensor]:
        """The groups of shelves that hold blocks from `first` on: the first group, their summaries
        ``[H_kv, 2 D, G]`` and rows per group ``[G]``."""
        group = self._serving.groups_before(first)
        return group, self._serving.summaries[..., group:], self._serving.counts[group:]

    def read(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The rows ``[H_kv, p * g, D]`` of different groups ``[H_kv, p]`` of each KV head, and the
        block of each row ``[H_kv, p * g]``, -1 where there is none.

        Raises:
            CorruptDataError: as the store's.
        """
        heads = torch.arange(self._heads, device=groups.device)[:, None]
        serving = self._serving
        pages = self.pages.read((serving.pages[groups] + heads).flatten())
        blocks = serving.blocks[heads, groups].long()
        blocks = torch.where(blocks == ABSENT, blocks, blocks + serving.starts[groups][..., None])
        return pages.reshape(*blocks.flatten(1).shape, -1), blocks.flatten(1)

    def export(self) -> dict[str, Tensor]:
        """The shelves that came to serve and are not yet stored, tensors by name."""
        return self._store.export(self.pages)

    def load(self, stored: Stored, blocks: int) -> None:
        """Serve the stored shelves of a session of `blocks` blocks, their rows in the store alone;
        `catch_up` forms those that are not stored.

        Raises:
            CorruptDataError: the stored tensors do not belong together.
        """
        self._served = self._store.load(stored)
        if any(n > self.grid.served(level, blocks) for level, n in enumerate(self._served)):
            raise self._store.incomplete(f"{self._served} shelves, of {blocks} blocks")
        for place in self.grid.serving(self._served):
            shelf = self._store.stored(stored, place)
            page = self.pages.adopt(shelf.groups * self._heads)
            self._store.hold(place, page)
            self._serving = self._serving.with_shelf(self._held(place, shelf, page), shelf)

    def catch_up(self, blocks: int, rows_of: RowsOf) -> None:
        """Form the shelves that a session of `blocks` blocks should have and that were not stored."""
        for level in range(self.grid.levels):
            for number in range(self._served[level], self.grid.served(level, blocks)):
                place = Place(level, number)
                self._serve(place, self._work(place, rows_of)(), blocks)
        self.grow(blocks, rows_of)

    def _serve(self, place: Place, shelf: Shelf, blocks: int) -> None:
        """Let a shelf serve, in place of those it was merged of, from `blocks` blocks on."""
        before = _Before(blocks, self._serving, tuple(self._served), len(self.pages))
        page = self.pages.put(shelf.rows)
        self._serving = self._serving.with_shelf(self._held(place, shelf, page), shelf)
        self._served[place.level] += 1
        self._store.add(place, shelf, page)
        self._before.append(before)

    def _held(self, place: Place, shelf: Shelf, page: int) -> Held:
        return Held(self.grid.first(place), self.grid.stop(place), shelf.groups, page)

    def _drop(self, shelves: set[Held]) -> None:
        for shelf in shelves:
            self.pages.drop(shelf.page, shelf.groups * self._heads)

    def _work(self, place: Place, rows_of: RowsOf) -> Callable[[], Shelf]:
        """What forms a shelf, in any thread, on the host: a device has other things to do, and equal rows
        give equal groups wherever they lay. What may change meanwhile is copied."""
        if place.level:
            return self._merging(place)
        found, size = rows_of(self.grid.first(place), self.grid.stop(place)), self.grid.group
        read, counts = downloaded_later(found.keys.clone()), found.starts.diff()
        blocks = torch.repeat_interleave(torch.arange(len(counts)), counts)

        def work() -> Shelf:
            rows = read()
            return form(lambda head: (rows[head], blocks), self._heads, size)

        return work

    def _merging(self, place: Place) -> Callable[[], Shelf]:
        """What forms a shelf of smaller ones, which serve."""
        first, serving, size = self.grid.first(place), self._serving, self.grid.group
        parts = serving.within(first, self.grid.stop(place))
        groups = slice(serving.groups_of(parts[0]).start, serving.groups_of(parts[-1]).stop)
        pages = [torch.arange(held.page, held.page + held.groups * self._heads) for held in parts]
        read = self.pages.later(torch.cat(pages))
        blocks = downloaded_later(serving.blocks[:, groups])
        offsets = torch.cat([torch.full((held.groups,), held.first - first) for held in parts])
        return lambda: form(rows_of_shelves(read(), blocks(), offsets), self._heads, size)
