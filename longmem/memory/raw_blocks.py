"""Closed blocks as the model made them, in host memory and in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from longmem.memory.block_at import BlockAt
from longmem.memory.blocks import BlockTable
from longmem.memory.fetching import Read
from longmem.memory.host_cache import HostCache
from longmem.memory.host_memory import HostMemory
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec
from longmem.ops.block_gather import Payloads


class RawBlocks:
    """One layer's closed blocks under codec "exact".

    Args:
        spec: the layer.
        table: where blocks end.
    """

    def __init__(self, spec: LayerSpec, table: BlockTable) -> None:
        self._spec = spec
        self._table = table
        self._memory = HostMemory(spec)
        self._cache: HostCache[Tensor] = HostCache()
        self.settled = 0
        """Blocks whose values are final."""

    payload: Payloads = "raw"
    """How settled blocks are written."""

    @property
    def on_gpu(self) -> bool:
        """Whether the layer lies on a GPU, and this memory is pinned."""
        return self._spec.device.type == "cuda"

    def nbytes(self, tokens: int) -> int:
        """Bytes of a settled block."""
        return tokens * self._spec.bytes_per_token

    @property
    def bytes(self) -> int:
        """Bytes in host memory."""
        return self._cache.bytes

    def put_many(self, first: int, blocks: Sequence[Tensor]) -> dict[int, BlockAt]:
        """Blocks closed, `first` and those behind it.

        Args:
            first: the number of the first.
            blocks: each ``[2, H_kv, n, D]``, contiguous, on the layer's device.

        Returns:
            The payloads, on the device, of the blocks whose values are others now.
        """
        for i, kv in enumerate(self._memory.send(blocks)):
            self._cache.add_new(first + i, kv)
        self.settled = first + len(blocks)
        return {first + i: BlockAt(kv, kv.shape[2]) for i, kv in enumerate(blocks)}

    def holds(self, block: int) -> bool:
        """Whether `get` would find the block."""
        return block in self._cache

    def get(self, block: int) -> Tensor | None:
        """The block's ``[2, H_kv, n, D]`` for the layer's device, if it is in host memory."""
        kv = self._cache.get(block)
        return None if kv is None else self._memory.on_device(kv)

    def at(self, block: int) -> BlockAt | None:
        """Where the block lies in host memory, if it does; it may still be under way there."""
        kv = self._cache.get(block)
        return None if kv is None else BlockAt(kv, kv.shape[2])

    def watch(self, moved: set[int]) -> None:
        """Note from now on in `moved` which blocks come or go."""
        self._cache.moved = moved

    def address(self, block: int) -> int | None:
        """Of the block in host memory, if it is there, which is not used by being asked for; it may be
        under way there."""
        kv = self._cache.peek(block)
        return None if kv is None else kv.data_ptr()

    def known(self, block: int) -> Tensor:
        """`get` of a block that must be in host memory."""
        kv = self.get(block)
        assert kv is not None, f"block {block} is not in host memory"
        return kv

    def touch(self, block: int) -> None:
        """A block that may be held was used."""
        self._cache.get(block)

    def raw(self, blocks: Sequence[int]) -> list[Tensor]:
        """Each ``[2, H_kv, n, D]`` of blocks that closed since the last commit."""
        return [self.known(block) for block in blocks]

    def reader(self, source: BlockSource, blocks: Sequence[int]) -> Read[Tensor]:
        """What reads committed blocks from the store, for `admit`."""
        spans = [self._table.span(block) for block in blocks]
        return partial(_read, source, self._spec.index, spans, self._memory)

    def admit(self, block: int, kv: Tensor) -> None:
        """Hold what was read of a block."""
        self._cache.add_read(block, kv)

    def shrink(self, max_bytes: int) -> None:
        """Let committed blocks go until `max_bytes` are held."""
        self._cache.shrink(max_bytes)

    def truncate(self, n_blocks: int) -> None:
        """Forget the blocks from `n_blocks` on."""
        self._cache.truncate(n_blocks)
        self.settled = min(self.settled, n_blocks)

    def commit(self, n_blocks: int) -> None:
        """The first `n_blocks` blocks are committed."""
        self._cache.commit(n_blocks)
        self.settled = n_blocks

    def forget(self, blocks: Sequence[int]) -> None:
        """These committed blocks will never be asked for again."""
        self._cache.forget(blocks)

    def export(self) -> dict[str, Tensor]:
        """Nothing but K/V rows, which are stored anyway."""
        return {}

    def restore(self, closed: int, source: BlockSource, rows: Mapping[str, int]) -> None:
        """Go on with `closed` committed blocks; of `rows` none is wanted."""
        self.commit(closed)


def rows_as_block(rows: Tensor, memory: HostMemory) -> Tensor:
    """``[2, H_kv, n, D]`` of stored rows ``[n, 2, H_kv, D]``, as blocks lie in host memory."""
    return memory.hold(
        rows.permute(1, 2, 0, 3)
    )  # rows may be a view of all that was read with them


def _read(
    source: BlockSource, layer: int, spans: Sequence[tuple[int, int]], memory: HostMemory
) -> list[Tensor]:
    return [rows_as_block(rows, memory) for rows in source.read_spans(layer, spans)]
