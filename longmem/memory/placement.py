"""Where the K/V of closed blocks lies: host memory, or only on disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor

RowReader = Callable[[int, int, int], Tensor]
"""(layer, start, stop) -> K/V rows ``[stop - start, 2, H_kv, D]`` of committed tokens."""


class BlockTier:
    """The closed blocks of one layer: a host cache, least recently used out first, over the store.

    Only committed blocks may leave the cache: a rewind may need the others. Without a store none
    that look-ups may choose ever leaves.

    Args:
        layer: number of the layer.
        max_bytes: bytes of committed blocks the cache may hold.
        attended: whether the layer ever attends to blocks; one that does not keeps none.
    """

    def __init__(self, layer: int, max_bytes: int, attended: bool) -> None:
        self._layer = layer
        self._max_bytes = max_bytes if attended else 0
        self._attended = attended
        self._cache: OrderedDict[int, Tensor] = OrderedDict()
        self._read_rows: RowReader | None = None
        self._durable = self._forgotten = 0
        self.bytes = 0
        """Bytes of the blocks in host memory."""

    def attach(self, read_rows: RowReader) -> None:
        """Read blocks that are not in host memory through `read_rows`."""
        self._read_rows = read_rows

    def put(self, block: int, kv: Tensor) -> None:
        """Hold a block's raw keys and values ``[2, H_kv, n, D]`` in host memory."""
        self._cache[block] = kv = kv.cpu()
        self.bytes += kv.nbytes

    def get(self, block: int, start: int, stop: int) -> Tensor:
        """The block's ``[2, H_kv, n, D]``, read from the store when not in host memory."""
        kv = self._cache.get(block)
        if kv is None:
            kv = self._fetch(start, stop)
            self.put(block, kv)
            kv = self._cache[block]
        self._cache.move_to_end(block)
        self._evict()
        return kv

    def truncate(self, n_blocks: int) -> None:
        """Forget the blocks from `n_blocks` on."""
        for block in [b for b in self._cache if b >= n_blocks]:
            self.bytes -= self._cache.pop(block).nbytes
        self._durable = min(self._durable, n_blocks)

    def set_durable(self, n_blocks: int) -> None:
        """The first `n_blocks` blocks are committed and may leave host memory."""
        self._durable = n_blocks
        self._evict()

    def forget(self, first: int) -> None:
        """Blocks before `first` will never be looked up again."""
        while self._cache and self._forgotten < first:
            if (kv := self._cache.pop(self._forgotten, None)) is not None:
                self.bytes -= kv.nbytes
            self._forgotten += 1

    def _fetch(self, start: int, stop: int) -> Tensor:
        if self._read_rows is None:
            raise RuntimeError(
                f"layer {self._layer}: block of {start}..{stop} is neither held nor stored"
            )
        return self._read_rows(self._layer, start, stop).permute(1, 2, 0, 3).contiguous()

    def _evict(self) -> None:
        if self.bytes <= self._max_bytes or (self._attended and self._read_rows is None):
            return
        victims, excess = [], self.bytes - self._max_bytes
        for block, kv in self._cache.items():
            if excess <= 0:
                break
            if block < self._durable:
                victims.append(block)
                excess -= kv.nbytes
        for block in victims:
            self.bytes -= self._cache.pop(block).nbytes
