"""Closed blocks in host memory: what is not yet committed stays, of the rest the least recently used
goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What can be held: a tensor, or a payload of several."""

    @property
    def nbytes(self) -> int:
        """Its bytes."""


Entry = TypeVar("Entry", bound=Sized)


class HostCache(Generic[Entry]):
    """Entries by block number. Only those of committed blocks may leave: a rewind may need the
    others."""

    def __init__(self) -> None:
        self._new: dict[int, Entry] = {}  # not yet committed, oldest first
        self._durable: OrderedDict[int, Entry] = OrderedDict()  # least recently used first
        self.bytes = 0
        """Bytes of all entries."""
        self.moved: set[int] | None = None
        """Where blocks that come or go are noted; None: nowhere."""

    def __contains__(self, block: int) -> bool:
        return block in self._durable or block in self._new

    def get(self, block: int) -> Entry | None:
        """The block's entry, now the most recently used; None if it is not held."""
        entry = self._durable.get(block)
        if entry is None:
            return self._new.get(block)
        self._durable.move_to_end(block)
        return entry

    def peek(self, block: int) -> Entry | None:
        """As `get`, but nothing is used."""
        entry = self._durable.get(block)
        return self._new.get(block) if entry is None else entry

    def add_new(self, block: int, entry: Entry) -> None:
        """Hold an entry that is not yet committed."""
        self._note(block)
        self._new[block] = entry
        self.bytes += entry.nbytes

    def add_read(self, block: int, entry: Entry) -> None:
        """Hold an entry that was read from the store."""
        self._note(block)
        self._durable[block] = entry
        self.bytes += entry.nbytes

    def commit(self, n_blocks: int) -> None:
        """The blocks before `n_blocks` are committed."""
        for block in [b for b in self._new if b < n_blocks]:
            self._durable[block] = self._new.pop(block)

    def truncate(self, n_blocks: int) -> None:
        """Forget the blocks from `n_blocks` on, none of which is committed."""
        self._forget(self._new, [b for b in self._new if b >= n_blocks])

    def forget(self, blocks: Iterable[int]) -> None:
        """Forget these committed blocks."""
        self._forget(self._durable, [b for b in blocks if b in self._durable])

    def shrink(self, max_bytes: int) -> None:
        """Let committed blocks go until all entries hold at most `max_bytes`, or none is left."""
        while self.bytes > max_bytes and self._durable:
            block, entry = self._durable.popitem(last=False)
            self._note(block)
            self.bytes -= entry.nbytes

    def _forget(self, entries: dict[int, Entry], blocks: Iterable[int]) -> None:
        for block in blocks:
            self._note(block)
            self.bytes -= entries.pop(block).nbytes

    def _note(self, block: int) -> None:
        if self.moved is not None:
            self.moved.add(block)
