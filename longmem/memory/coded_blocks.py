"""Closed blocks as a codec writes them, in host memory and in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from longmem.codec import Codec, Payload
from longmem.errors import CorruptDataError
from longmem.memory.blocks import BlockTable
from longmem.memory.fetching import Read
from longmem.memory.groups import BlockGroups
from longmem.memory.host_cache import HostCache
from longmem.memory.raw_blocks import in_host_memory, rows_as_block
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec


@dataclass(frozen=True)
class Coding:
    """How a session's blocks are encoded, and in which groups."""

    codec: Codec
    groups: BlockGroups


class CodedBlocks:
    """One layer's closed blocks under a codec.

    When a group of blocks is complete it is encoded, once; from then on its blocks have the decoded
    values everywhere. Until the next commit the raw values are kept, too, because a rewind brings
    them back; those of the group that is not complete are always in host memory.

    Args:
        spec: the layer.
        table: where blocks end.
        coding: the codec and its groups.
    """

    def __init__(self, spec: LayerSpec, table: BlockTable, coding: Coding) -> None:
        self._spec = spec
        self._table = table
        self._codec, self._groups = coding.codec, coding.groups
        self._raw: dict[int, Tensor] = {}
        self._raw_bytes = 0
        self._cache: HostCache[Payload] = HostCache()
        self._encoded = self._exported = 0  # groups

    @property
    def settled(self) -> int:
        """Blocks whose values are final."""
        return self._groups.end(self._encoded)

    @property
    def bytes(self) -> int:
        """Bytes in host memory."""
        return self._raw_bytes + self._cache.bytes

    def put(self, block: int, kv: Tensor) -> list[int]:
        """A block closed: raw ``[2, H_kv, n, D]``; gives the blocks whose values are others now."""
        self._hold_raw(block, in_host_memory(kv))
        before = self.settled
        if self._groups.complete(block + 1) == self._encoded:
            return [block]
        self._encode(self._encoded)
        self._encoded += 1
        return list(range(before, self.settled))

    def holds(self, block: int) -> bool:
        """Whether `get` would find the block."""
        return block in self._cache if block < self.settled else block in self._raw

    def get(self, block: int) -> Tensor | None:
        """The block's ``[2, H_kv, n, D]``, if it is in host memory."""
        if block >= self.settled:
            return self._raw.get(block)
        payload = self._cache.get(block)
        return None if payload is None else self._decode(payload)

    def known(self, block: int) -> Tensor:
        """`get` of a block that must be in host memory."""
        kv = self.get(block)
        assert kv is not None, f"block {block} is not in host memory"
        return kv

    def touch(self, block: int) -> None:
        """A block that may be held was used."""
        self._cache.get(block)

    def raw(self, blocks: Sequence[int]) -> list[Tensor]:
        """Each raw ``[2, H_kv, n, D]`` of blocks that closed since the last commit."""
        return [self._raw[block] for block in blocks]

    def reader(self, source: BlockSource, blocks: Sequence[int]) -> Read[Payload]:
        """What reads committed blocks from the store, for `admit`."""
        first = self._table.edges[0]
        spans = [self._table.span(block) for block in blocks]
        rows = [(start - first, stop - first) for start, stop in spans]
        groups = [self._groups.of(block) for block in blocks]
        return partial(_read, source, self._spec.index, rows, groups, self._codec.group_tokens > 1)

    def admit(self, block: int, payload: Payload) -> Tensor:
        """Hold what was read of a block; gives its ``[2, H_kv, n, D]``."""
        self._cache.add_read(block, payload)
        return self._decode(payload)

    def shrink(self, max_bytes: int) -> None:
        """Let committed blocks go until `max_bytes` are held."""
        self._cache.shrink(max_bytes - self._raw_bytes)

    def truncate(self, n_blocks: int) -> None:
        """Forget the blocks from `n_blocks` on, and groups that hold some of them."""
        self._encoded = min(self._encoded, self._groups.complete(n_blocks))
        self._cache.truncate(self.settled)
        self._drop_raw([block for block in self._raw if block >= n_blocks])

    def commit(self, n_blocks: int) -> None:
        """The first `n_blocks` blocks are committed."""
        self._exported = self._encoded
        self._cache.commit(self.settled)
        self._drop_raw([block for block in self._raw if block < self.settled])

    def forget(self, blocks: Sequence[int]) -> None:
        """These committed blocks will never be asked for again."""
        self._cache.forget(blocks)

    def export(self) -> dict[str, Tensor]:
        """The payload of the groups that became complete since the last commit: `Payload`'s tensors
        by name, the rows of all blocks, the key scales of all groups."""
        groups = range(self._exported, self._encoded)
        first = [self._groups.end(group) for group in groups]
        blocks = range(self._groups.end(self._exported), self.settled)
        if not blocks:
            return {}
        parts = {block: self._payload(block) for block in blocks}
        made = {"codes": torch.cat([part.codes for part in parts.values()])}
        keys = [parts[block].key_scales for block in first]
        values = [part.value_scales for part in parts.values()]
        if keys[0] is not None:
            made["key_scales"] = torch.cat(keys)  # type: ignore[arg-type]  # all or none
            made["value_scales"] = torch.cat(values)  # type: ignore[arg-type]
        return made

    def restore(self, closed: int, source: BlockSource, rows: Mapping[str, int]) -> None:
        """Go on with `closed` committed blocks; `rows` are those of the stored tensors.

        Raises:
            CorruptDataError: they are not the rows of so many blocks.
        """
        self._encoded = self._exported = self._groups.complete(closed)
        self._check(rows.get(f"codes.{self._spec.index}", 0))
        open_group = range(self.settled, closed)
        spans = [self._table.span(block) for block in open_group]
        raw = source.read_spans(self._spec.index, spans) if spans else []
        for block, each in zip(open_group, raw, strict=True):
            self._hold_raw(block, rows_as_block(each, self._spec))

    def _check(self, rows: int) -> None:
        edges = self._table.edges
        tokens = edges[self.settled] - edges[0]
        if rows != tokens:
            raise CorruptDataError(
                f"layer {self._spec.index}: {rows} tokens are encoded, but the closed blocks have "
                f"{tokens}; open the session with rebuild=True"
            )

    def _encode(self, group: int) -> None:
        blocks = range(self._groups.end(group), self._groups.end(group + 1))
        kv = torch.cat([self._raw[block] for block in blocks], dim=2)
        payload = self._codec.encode(kv.permute(2, 0, 1, 3))
        first = self._table.edges[blocks[0]]
        for block in blocks:
            start, stop = self._table.span(block)
            self._cache.add_new(block, payload.rows(start - first, stop - first))

    def _decode(self, payload: Payload) -> Tensor:
        rows = self._codec.decode(payload.to(self._spec.device), self._spec.dtype)
        return rows.permute(1, 2, 0, 3)

    def _payload(self, block: int) -> Payload:
        payload = self._cache.get(block)
        assert payload is not None, f"block {block} left before it was committed"
        return payload

    def _hold_raw(self, block: int, kv: Tensor) -> None:
        self._raw[block] = kv
        self._raw_bytes += kv.nbytes

    def _drop_raw(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._raw_bytes -= self._raw.pop(block).nbytes


def _read(
    source: BlockSource,
    layer: int,
    rows: Sequence[tuple[int, int]],
    groups: Sequence[int],
    scaled: bool,
) -> list[Payload]:
    """Payloads of rows ``start .. stop`` of a layer's codes, each in its group."""
    # copies: what was read may be views of one buffer
    codes = [each.clone() for each in source.read_blocks(f"codes.{layer}", rows)]
    if not scaled:
        return [Payload(each) for each in codes]
    values = [each.clone() for each in source.read_blocks(f"value_scales.{layer}", rows)]
    distinct = sorted(set(groups))
    found = source.read_blocks(f"key_scales.{layer}", [(group, group + 1) for group in distinct])
    keys = {group: each.clone() for group, each in zip(distinct, found, strict=True)}
    return [
        Payload(code, keys[group], value)
        for code, group, value in zip(codes, groups, values, strict=True)
    ]
