"""Host memory for blocks, taken from the system in large pieces.

Pinned memory, which a device reads and writes by itself, is taken page by page under a lock of the
driver: a history of a million tokens in 32 layers is 250,000 blocks, which pinned one by one would take
minutes.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20
_ALIGNED = 256
_SHARES = 32
"""Sizes between two powers of two: a region is at most 1 / 32 larger than what was asked for."""


@dataclass(eq=False)
class _Chunk:
    """Memory regions are cut from.

    Args:
        memory: ``[bytes]`` uint8.
        used: bytes cut off so far.
        live: regions in use.
        generation: how often it began anew, which the regions cut before do not outlive.
    """

    memory: Tensor
    used: int = 0
    live: int = 0
    generation: int = 0
    array: Any = field(init=False)

    def __post_init__(self) -> None:
        self.array = self.memory.numpy()


@dataclass(frozen=True, eq=False)
class _Region:
    chunk: _Chunk
    start: int
    size: int
    generation: int


class Arena:
    """Regions of large chunks; a region is free again when no tensor uses it any more.

    Whoever lets a device copy from or to a region keeps its tensor until that copy is through
    (`longmem.memory.transfers`), so that what is free is not in flight. Safe to use from threads.

    Args:
        pinned: whether chunks are pinned.
        chunk_bytes: of one chunk.
    """

    def __init__(self, pinned: bool, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._pinned, self._chunk_bytes = pinned, chunk_bytes
        self._chunks: list[_Chunk] = []
        self._free: dict[int, list[_Region]] = {}
        self._freed: deque[_Region] = deque()  # filled by whichever thread drops a tensor
        self._watched: dict[int, weakref.ref[Any]] = {}
        self._lock = Lock()

    @property
    def bytes(self) -> int:
        """Bytes taken from the system."""
        return sum(chunk.memory.nbytes for chunk in self._chunks)

    def take(self, nbytes: int) -> Tensor:
        """Uninitialised ``[nbytes]`` uint8, its address a multiple of 16."""
        with self._lock:
            self._collect()
            region = self._region(_rounded_up(nbytes))
            region.chunk.live += 1
        array = region.chunk.array[region.start : region.start + nbytes]
        key, freed, watched = id(array), self._freed, self._watched

        def free(_: object) -> None:
            watched.pop(key, None)
            freed.append(region)

        self._watched[key] = weakref.ref(array, free)
        return torch.from_numpy(array)

    def _region(self, size: int) -> _Region:
        free = self._free.get(size, [])
        while free:
            region = free.pop()
            if region.generation == region.chunk.generation:
                return region
        chunk = next((c for c in self._chunks[-1:] if c.used + size <= c.memory.nbytes), None)
        chunk = chunk or self._emptied(size) or self._added(size)
        region = _Region(chunk, chunk.used, size, chunk.generation)
        chunk.used += size
        return region

    def _emptied(self, size: int) -> _Chunk | None:
        """A chunk that was begun anew, now the last, from which regions are cut."""
        for i, chunk in enumerate(self._chunks):
            if not chunk.used and size <= chunk.memory.nbytes:
                self._chunks.append(self._chunks.pop(i))
                return chunk
        return None

    def _added(self, size: int) -> _Chunk:
        nbytes = max(size, self._chunk_bytes)
        chunk = _Chunk(torch.empty(nbytes, dtype=torch.uint8, pin_memory=self._pinned))
        self._chunks.append(chunk)
        return chunk

    def _collect(self) -> None:
        """Take back what was freed; a chunk no region of which is in use begins anew, and of those
        only one is kept."""
        while self._freed:
            region = self._freed.popleft()
            chunk = region.chunk
            chunk.live -= 1
            self._free.setdefault(region.size, []).append(region)
            if not chunk.live:
                self._begin_anew(chunk)

    def _begin_anew(self, chunk: _Chunk) -> None:
        chunk.generation += 1
        chunk.used = 0
        if sum(not other.used for other in self._chunks) > 1:
            self._chunks.remove(chunk)
            chunk.memory = torch.empty(0, dtype=torch.uint8)  # regions of it may be listed still
            chunk.array = chunk.memory.numpy()


def _rounded_up(nbytes: int) -> int:
    step = max(_ALIGNED, (1 << max(nbytes - 1, 1).bit_length() - 1) // _SHARES)
    return -(-max(nbytes, 1) // step) * step


@cache
def arena(pinned: bool) -> Arena:
    """The process's arena."""
    return Arena(pinned)
