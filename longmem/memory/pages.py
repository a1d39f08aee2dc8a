"""Rows of groups: in slots of memory, filled from the store where a look-up asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longmem.memory.uploading import downloaded_later, upload

_ABSENT, _DROPPED = -1, -2

PageReader = Callable[[Sequence[tuple[int, int]]], list[Tensor]]
"""Spans of pages -> their rows from the store, ``[n, g, D']`` per span."""


class GroupPages:
    """Pages ``[g, D']``, numbered in the order they were added, least recently read out first.

    Only durable pages leave memory: the others are nowhere else. Without a reader none leaves.

    Args:
        size: g, rows of a page.
        dim: D'.
        dtype, device: of the rows.
    """

    def __init__(self, size: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._slots = torch.zeros(0, size, dim, dtype=dtype, device=device)
        self._out = self._slots.clone()  # what the last look-up read
        self._page_of = torch.zeros(0, dtype=torch.int64)  # page in each slot; -1: free
        self._used = torch.zeros(0, dtype=torch.int64)  # when each slot was last read
        self._slot_of = torch.zeros(
            0, dtype=torch.int64
        )  # slot of each page; -1: not held; -2: dropped
        self._there: Tensor | None = None  # _slot_of on the device; empty unless all are held
        self._durable = self._clock = 0
        self.reader: PageReader | None = None
        """Reads durable pages."""
        self.most: int | None = None
        """Slots there should be at most; None: no limit."""
        self.hits = self.misses = 0
        """Pages of look-ups that were in memory, or had to be read."""

    def __len__(self) -> int:
        """Pages there are, held or not."""
        return self._slot_of.shape[0]

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        tables = self._page_of.nbytes + self._used.nbytes + self._slot_of.nbytes
        return self._slots.nbytes + self._out.nbytes + tables

    @property
    def page_bytes(self) -> int:
        """Bytes of the rows of one page."""
        return self._slots.shape[1] * self._slots.shape[2] * self._slots.element_size()

    def slots_within(self, room: int) -> int:
        """How many slots fit into so many bytes, what is known of every page counted inside."""
        per_slot = self.page_bytes + self._page_of.element_size() + self._used.element_size()
        return (room - self._slot_of.nbytes) // per_slot

    def put(self, rows: Tensor) -> int:
        """Add pages ``[n, g, D']``; gives the first one's number."""
        first = self._add(len(rows))
        self._fill(torch.arange(first, len(self)), rows)
        return first

    def adopt(self, pages: int) -> int:
        """There are so many pages more, all in the store alone; gives the first one's number."""
        first = self._add(pages)
        self._durable = len(self)
        return first

    def read(self, pages: Tensor) -> Tensor:
        """Rows ``[n, g, D']`` of different pages, given by number ``[n]`` int64; they hold until the next
        call. Numbers that lie on the device stay there if all pages are in memory; otherwise the host
        waits for them, and reads what is lacking.

        Raises:
            CorruptDataError: as the store's.
        """
        if pages.device.type != "cpu" and (there := self._all_there()) is not None:
            self.hits += len(pages)
            return self._read_out(there[pages])
        pages = pages.cpu()
        self._clock += 1
        slots = self._slot_of[pages]
        absent = slots < 0
        missing = pages[absent]
        if len(missing):
            self._used[slots[~absent]] = self._clock
            missing = missing.sort().values
            self._fill(missing, self._fetched(missing))
            slots = self._slot_of[pages]
        else:
            self._used[slots] = self._clock
        self.hits += len(pages) - len(missing)
        self.misses += len(missing)
        return self._read_out(upload(slots, self._slots.device))

    def later(self, pages: Tensor) -> Callable[[], Tensor]:
        """What gives the rows ``[n, g, D']`` of pages ``[n]`` on the host in any thread, without counting
        as a read, whatever becomes of their slots meanwhile.

        Raises (when called):
            CorruptDataError: as the store's.
        """
        slots, held, reader = self._slot_of[pages], self._slots, self.reader
        if reader is None:  # they never leave, and slots that grow are others
            return downloaded_later(held, slots)
        own = pages >= self._durable
        kept, stored = downloaded_later(held[upload(slots[own], held.device)]), pages[~own]

        def read() -> Tensor:
            order = stored.sort().indices
            rows = torch.empty(len(pages), *held.shape[1:], dtype=held.dtype)
            rows[own] = kept()
            if len(stored):
                rows[(~own).nonzero()[order, 0]] = _fetched(reader, stored[order])
            return rows

        return read

    def rows(self, page: int, n: int) -> Tensor:
        """Rows ``[n, g, D']`` of the pages from `page` on, none of them durable."""
        return self._slots[upload(self._slot_of[page : page + n], self._slots.device)]

    def truncate(self, pages: int) -> None:
        """Forget the pages from `pages` on."""
        self._free(self._slot_of[pages:])
        self._slot_of = self._slot_of[:pages].clone()
        self._there = None
        self._durable = min(self._durable, pages)

    def drop(self, page: int, n: int) -> None:
        """The `n` pages from `page` on will not be read again."""
        self._free(self._slot_of[page : page + n])
        self._slot_of[page : page + n] = _DROPPED

    def commit(self, pages: int) -> None:
        """The first `pages` pages are durable: those beyond the limit may leave memory."""
        self._durable = pages
        if self.reader is not None and self.most is not None and len(self._page_of) > self.most:
            self._resize(self.most)

    def _add(self, pages: int) -> int:
        first = len(self)
        self._slot_of = torch.cat((self._slot_of, self._slot_of.new_full((pages,), _ABSENT)))
        self._there = None
        return first

    def _all_there(self) -> Tensor | None:
        """Slots of all pages, on the device; None while some are in the store alone."""
        if self._there is None:
            held = not bool((self._slot_of == _ABSENT).any())
            known = self._slot_of if held else self._slot_of[:0]
            self._there = upload(known, self._slots.device)
        return self._there if len(self._there) == len(self) else None

    def _read_out(self, slots: Tensor) -> Tensor:
        """The rows of slots ``[n]``, which lie on the device."""
        if len(self._out) < len(slots):  # kept: new memory would cost more than the copy
            self._out = self._slots.new_empty(len(slots), *self._slots.shape[1:])
        return torch.index_select(self._slots, 0, slots, out=self._out[: len(slots)])

    def _fetched(self, pages: Tensor) -> Tensor:
        """Pages ``[n]``, ascending, from the store."""
        if self.reader is None:
            raise RuntimeError(f"pages {pages.tolist()} of the index are neither held nor stored")
        return _fetched(self.reader, pages)

    def _fill(self, pages: Tensor, rows: Tensor) -> None:
        slots = self._room(len(pages))
        device = self._slots.device
        self._slots[upload(slots, device)] = upload(rows.cpu(), device)
        self._there = None
        self._page_of[slots], self._slot_of[pages] = pages, slots
        self._used[slots] = self._clock

    def _room(self, n: int) -> Tensor:
        """So many free slots: there are, or new ones within the limit, or of pages that leave."""
        free = (self._page_of < 0).nonzero()[:, 0]
        lacking = n - len(free)
        if lacking <= 0:
            return free[:n]
        have = len(self._page_of)
        wanted = max(have + lacking, have * 3 // 2)
        if self.reader is not None and self.most is not None:
            wanted = min(wanted, max(self.most, have))
        lacking -= wanted - have
        self._resize(wanted + max(0, lacking - self._evict(max(0, lacking))))
        return (self._page_of < 0).nonzero()[:n, 0]

    def _evict(self, n: int) -> int:
        """Let up to `n` pages go that the present call does not read; gives how many went."""
        may_go = (self._page_of >= 0) & (self._page_of < self._durable) & (self._used < self._clock)
        slots = may_go.nonzero()[:, 0]
        slots = slots[self._used[slots].sort(stable=True).indices[:n]]
        self._free(slots)
        return len(slots)

    def _free(self, slots: Tensor) -> None:
        slots = slots[slots >= 0]
        self._slot_of[self._page_of[slots]] = _ABSENT
        self._page_of[slots] = -1
        self._there = None

    def _resize(self, slots: int) -> None:
        """Have so many slots, or as many as pages that are not durable need."""
        if slots == len(self._page_of):
            return
        held = (self._page_of >= 0).nonzero()[:, 0]
        late = self._page_of[held] >= self._durable
        rank = self._used[held] + late * (self._clock + 1)
        kept = held[rank.sort(descending=True, stable=True).indices[: max(slots, int(late.sum()))]]
        pages, used, old = self._page_of[kept], self._used[kept], self._slots
        n = max(slots, len(kept))
        self._slots = old.new_zeros(n, *old.shape[1:])
        self._slots[: len(kept)] = old[upload(kept, old.device)]
        self._there = None
        self._page_of = torch.full((n,), -1)
        self._used = torch.zeros(n, dtype=torch.int64)
        self._slot_of[self._slot_of >= 0] = _ABSENT
        self._page_of[: len(kept)], self._used[: len(kept)] = pages, used
        self._slot_of[pages] = torch.arange(len(kept))


def _fetched(reader: PageReader, pages: Tensor) -> Tensor:
    """Pages ``[n]``, ascending, neighbours in one span."""
    runs = pages.tensor_split((pages.diff() != 1).nonzero()[:, 0] + 1)
    return torch.cat(reader([(int(run[0]), int(run[-1]) + 1) for run in runs]))
