"""Closed blocks as a codec writes them, in host memory and in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from longmem.codec import Codec, Packed, Packing, Payload
from longmem.errors import CorruptDataError
from longmem.memory.block_at import BlockAt
from longmem.memory.blocks import BlockTable
from longmem.memory.fetching import Read
from longmem.memory.groups import BlockGroups
from longmem.memory.host_cache import HostCache
from longmem.memory.host_memory import HostMemory
from longmem.memory.raw_blocks import rows_as_block
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec
from longmem.ops.block_gather import Payloads


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
        self._packing = Packing(spec.kv_heads, spec.dim, coding.codec.bits)
        self.payload: Payloads = coding.codec.name
        """How settled blocks are written."""
        self._memory = HostMemory(spec)
        self._raw: dict[int, Tensor] = {}
        self._raw_bytes = 0
        self._cache: HostCache[Payload] = HostCache()
        self._encoded = self._exported = 0  # groups

    def nbytes(self, tokens: int) -> int:
        """Bytes of a settled block in one piece."""
        return self._packing.nbytes(tokens)

    @property
    def settled(self) -> int:
        """Blocks whose values are final."""
        return self._groups.end(self._encoded)

    @property
    def bytes(self) -> int:
        """Bytes in host memory."""
        return self._raw_bytes + self._cache.bytes

    def put_many(self, first: int, blocks: Sequence[Tensor]) -> dict[int, BlockAt]:
        """Blocks closed, `first` and those behind it; see `RawBlocks.put_many`.

        Returns:
            Of the blocks that were encoded now their payloads in one piece, on the device; none where
            the model computes on the host, which serves them from there.
        """
        for i, kv in enumerate(self._memory.send(blocks)):
            self._hold_raw(first + i, kv)
        complete = self._groups.complete(first + len(blocks))
        near = {first + i: kv for i, kv in enumerate(blocks)}
        made: dict[int, BlockAt] = {}
        for groups in self._alike(range(self._encoded, complete)):
            made |= self._encode(groups, near)
        self._encoded = complete
        return made

    def holds(self, block: int) -> bool:
        """Whether `get` would find the block."""
        return block in self._cache if block < self.settled else block in self._raw

    def get(self, block: int) -> Tensor | None:
        """The block's ``[2, H_kv, n, D]`` for the layer's device, if it is in host memory."""
        if block >= self.settled:
            kv = self._raw.get(block)
            return None if kv is None else self._memory.on_device(kv)
        payload = self._cache.get(block)
        return None if payload is None else self._decode(payload)

    def at(self, block: int) -> BlockAt | None:
        """Where the block lies in host memory, in one piece, if it does; see `RawBlocks.at`."""
        if block >= self.settled:
            kv = self._raw.get(block)
            return None if kv is None else BlockAt(kv, kv.shape[2])
        payload = self._cache.get(block)
        if payload is None:
            return None
        assert isinstance(payload, Packed)
        return BlockAt(payload.piece, len(payload.codes), self.payload)

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
        return [self._memory.on_device(self._raw[block]) for block in blocks]

    def reader(self, source: BlockSource, blocks: Sequence[int]) -> Read[Payload]:
        """What reads committed blocks from the store, for `admit`."""
        first = self._table.edges[0]
        spans = [self._table.span(block) for block in blocks]
        rows = [(start - first, stop - first) for start, stop in spans]
        groups = [self._groups.of(block) for block in blocks]
        scaled = self._codec.group_tokens > 1
        read = partial(_read, source, self._spec.index, rows, groups, scaled)
        return (lambda: [self._packed(each) for each in read()]) if self._memory.apart else read

    def admit(self, block: int, payload: Payload) -> None:
        """Hold what was read of a block."""
        self._cache.add_read(block, payload)

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
            self._hold_raw(block, rows_as_block(each, self._memory))

    def _check(self, rows: int) -> None:
        edges = self._table.edges
        tokens = edges[self.settled] - edges[0]
        if rows != tokens:
            raise CorruptDataError(
                f"layer {self._spec.index}: {rows} tokens are encoded, but the closed blocks have "
                f"{tokens}; open the session with rebuild=True"
            )

    def _alike(self, groups: Sequence[int]) -> list[list[int]]:
        """Neighbouring groups of as many tokens: they are encoded at once."""
        edges = self._table.edges

        def tokens(group: int) -> int:
            return edges[self._groups.end(group + 1)] - edges[self._groups.end(group)]

        return [list(run) for _, run in groupby(groups, tokens)]

    def _encode(self, groups: Sequence[int], near: Mapping[int, Tensor]) -> dict[int, BlockAt]:
        """Encode groups of one size, where the layer lies; those of `near` lie there already."""
        members = [range(self._groups.end(g), self._groups.end(g + 1)) for g in groups]
        whole = [torch.cat([self._near(b, near) for b in blocks], dim=2) for blocks in members]
        payload = self._codec.encode(torch.stack(whole).permute(0, 3, 1, 2, 4))
        made: dict[int, BlockAt] = {}
        for g, blocks in enumerate(members):
            group, first = payload[g], self._table.edges[blocks[0]]
            for block in blocks:
                start, stop = self._table.span(block)
                self._add(block, group.rows(start - first, stop - first), made)
        if made:
            sent = self._memory.send([at.memory for at in made.values()])
            for (block, at), memory in zip(made.items(), sent, strict=True):
                self._cache.add_new(block, self._packing.payload(memory, at.tokens))
        return made

    def _add(self, block: int, payload: Payload, made: dict[int, BlockAt]) -> None:
        """Hold an encoded block, or let it be `made` in one piece to be sent where it will be held."""
        if not self._memory.apart:
            self._cache.add_new(block, payload.copied())
            return
        tokens = len(payload.codes)
        piece = torch.empty(self.nbytes(tokens), dtype=torch.uint8, device=self._spec.device)
        made[block] = BlockAt(self._packing.write(payload, piece).piece, tokens, self.payload)

    def _near(self, block: int, near: Mapping[int, Tensor]) -> Tensor:
        return near[block] if block in near else self._memory.on_device(self._raw[block])

    def _packed(self, payload: Payload) -> Packed:
        """A payload from the store in one piece of host memory."""
        nbytes = self.nbytes(len(payload.codes))
        return self._packing.write(payload, self._memory.room((nbytes,), torch.uint8))

    def _decode(self, payload: Payload) -> Tensor:
        if isinstance(payload, Packed):
            there = self._memory.on_device(payload.piece)
            payload = self._packing.payload(there, len(payload.codes))
        return self._codec.decode(payload, self._spec.dtype).permute(1, 2, 0, 3)

    def _payload(self, block: int) -> Payload:
        payload = self._cache.get(block)
        assert payload is not None, f"block {block} left before it was committed"
        if isinstance(payload, Packed):
            self._memory.read(payload.piece)
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
