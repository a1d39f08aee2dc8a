"""Closed blocks as the model made them, in host memory and in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from longmem.memory.blocks import BlockTable
from longmem.memory.fetching import Read
from longmem.memory.host_cache import HostCache
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec


class RawBlocks:
    """One layer's closed blocks under codec "exact".

    Args:
        spec: the layer.
        table: where blocks end.
    """

    def __init__(self, spec: LayerSpec, table: BlockTable) -> None:
        self._spec = spec
        self._table = table
        self._cache: HostCache[Tensor] = HostCache()
        self.settled = 0
        """Blocks whose values are final."""

    @property
    def bytes(self) -> int:
        """Bytes in host memory."""
        return self._cache.bytes

    def put(self, block: int, kv: Tensor) -> list[int]:
        """A block closed: ``[2, H_kv, n, D]``; gives the blocks whose values are others now."""
        self._cache.add_new(block, in_host_memory(kv))
        self.settled = block + 1
        return [block]

    def holds(self, block: int) -> bool:
        """Whether `get` would find the block."""
        return block in self._cache

    def get(self, block: int) -> Tensor | None:
        """The block's ``[2, H_kv, n, D]``, if it is in host memory."""
        return self._cache.get(block)

    def known(self, block: int) -> Tensor:
        """`get` of a block that must be in host memory."""
        kv = self._cache.get(block)
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
        return partial(_read, source, self._spec, [self._table.span(block) for block in blocks])

    def admit(self, block: int, kv: Tensor) -> Tensor:
        """Hold what was read of a block; gives its ``[2, H_kv, n, D]``."""
        self._cache.add_read(block, kv)
        return kv

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


def in_host_memory(kv: Tensor) -> Tensor:
    """`kv` on the host; pinned when it comes from a GPU, which it will go back to."""
    return kv.to("cpu").pin_memory() if kv.is_cuda else kv


def rows_as_block(rows: Tensor, spec: LayerSpec) -> Tensor:
    """``[2, H_kv, n, D]`` of stored rows ``[n, 2, H_kv, D]``; pinned for a layer on a GPU."""
    # a copy in any case: rows may be a view of all that was read with them
    kv = rows.permute(1, 2, 0, 3).clone(memory_format=torch.contiguous_format)
    return kv.pin_memory() if spec.device.type == "cuda" else kv


def _read(source: BlockSource, spec: LayerSpec, spans: Sequence[tuple[int, int]]) -> list[Tensor]:
    return [rows_as_block(rows, spec) for rows in source.read_spans(spec.index, spans)]
