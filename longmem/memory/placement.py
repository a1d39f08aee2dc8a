"""Where the K/V of closed blocks lies: in slots on the device, in host memory, or only in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.block_at import Block, BlockAt, gathered
from longmem.memory.blocks import BlockTable
from longmem.memory.budget import TierBudget
from longmem.memory.coded_blocks import CodedBlocks, Coding
from longmem.memory.directory import BlockDirectory
from longmem.memory.fetching import Ahead
from longmem.memory.raw_blocks import RawBlocks
from longmem.memory.role import LayerRole
from longmem.memory.slab import DeviceSlab
from longmem.memory.slots import Slots
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec
from longmem.memory.transfers import transfers_of

_LOOKUPS_AHEAD = 4
"""Look-ups whose blocks may be under way from the store at once."""
_HALF_LIFE = 32
"""Look-ups after which the use of a block in a slot counts half."""


@dataclass
class TierCounts:
    """Where the blocks of look-ups were found; blocks the working set held still are not asked for.

    Args:
        device, host, disk: blocks found in a slot, in host memory, in the store.
        no_slot: blocks for which there are slots, but that were in none.
        ahead: of those in the store, how many were being read when they were asked for.
        bytes_read: bytes that came from the store.
    """

    device: int = 0
    host: int = 0
    disk: int = 0
    no_slot: int = 0
    ahead: int = 0
    bytes_read: int = 0


class BlockTier:
    """The closed blocks of one layer: slots on the device over host memory over the store.

    Only committed blocks may leave host memory: a rewind may need the others. Without a store none
    that look-ups may choose ever leaves. A slot is a copy; what leaves a slot is nowhere lost.

    Args:
        spec: the layer.
        config: the memory settings.
        table: where blocks end.
        budget: bytes for the slots and for host memory.
        coding: the codec and its groups; None serves and stores raw values.
    """

    def __init__(
        self,
        spec: LayerSpec,
        config: MemoryConfig,
        table: BlockTable,
        budget: TierBudget,
        coding: Coding | None = None,
    ) -> None:
        role = LayerRole.of(spec, config)
        self._spec = spec
        self._table = table
        self._attended = role.attends
        self._budget = budget
        self._host: RawBlocks | CodedBlocks = RawBlocks(spec, table)
        if coding is not None and role.reached:
            self._host = CodedBlocks(spec, table, coding)
        blocks = config.topk + config.contiguity
        self._slab: DeviceSlab | None = None
        self._slots: Slots | None = None
        self._transfers = transfers_of(spec.device)
        self._gathers = spec.kernels
        if role.attends and not role.takes_all:
            slot = self._host.nbytes(config.block_size) if self._gathers else None
            self._slab = DeviceSlab(spec, config.block_size, _HALF_LIFE * blocks, slot)
            if self._gathers:
                self._slots = Slots(self._slab, self._host.payload, self._transfers)
        self._ahead: Ahead[Any] = Ahead(_LOOKUPS_AHEAD * blocks)
        self._source: BlockSource | None = None
        self._durable = self._forgotten = 0
        self._directory: BlockDirectory | None = None
        self.counts = TierCounts()
        """Where blocks were found so far."""

    @property
    def bytes(self) -> int:
        """Bytes of the blocks in host memory."""
        return self._host.bytes

    @property
    def slab_bytes(self) -> int:
        """Bytes of the slots on the device."""
        return self._slab.bytes if self._slab else 0

    @property
    def settled(self) -> int:
        """Blocks whose values are final. Under a codec those of the others change once, when their
        group is complete."""
        return self._host.settled

    def attach(self, source: BlockSource) -> None:
        """Read blocks that are not in host memory from `source`."""
        self._source = source

    def put_many(self, first: int, blocks: Sequence[Tensor]) -> None:
        """Blocks closed: `first` and those behind it, each raw ``[2, H_kv, n, D]``, contiguous."""
        before = self._host.settled
        made = self._host.put_many(first, blocks)
        if self._slab is None or not self._budget.device:
            return
        if self._slots is not None:
            self._slots.fill(made, self._budget.device)
            return
        fresh = dict(enumerate(blocks, first))  # as they are served, but for those just encoded
        encoded = self._host.settled if self._host.payload != "raw" else 0
        for each in sorted({*range(before, self._host.settled), *fresh}):
            kv = self._host.known(each) if each < encoded else fresh[each]
            self._hold_in_slot(each, kv)

    def get_many(self, blocks: Sequence[int]) -> Sequence[Block]:
        """Each block's ``[2, H_kv, n, D]``, on the device or the host, or where kernels find it.

        To be used before the next call: what is in a slot may be written over then.

        Raises:
            CorruptDataError: a file of the store is missing or altered, and other errors of reading.
        """
        return self._located(blocks) if self._gathers else self.values(blocks)

    def values(self, blocks: Sequence[int]) -> list[Tensor]:
        """Each block's ``[2, H_kv, n, D]``, to be used and failing as that of `get_many`."""
        if self._gathers:
            return [gathered(at, self._spec) for at in self._located(blocks)]
        found = {block: kv for block in blocks if (kv := self._held(block)) is not None}
        missing = [block for block in blocks if block not in found]
        if missing:
            self._fetch(missing)
            found |= {block: self._host.known(block) for block in missing}
        if self._slab is not None and self._budget.device:
            for block in blocks:
                if block not in self._slab:
                    self._hold_in_slot(block, found[block], keep=blocks)
        self._shrink()
        return [found[block] for block in blocks]

    def prefetch(self, blocks: Sequence[int]) -> None:
        """These blocks will soon be asked for: begin to read those of them that lie in the store alone,
        and, where kernels gather them, to copy those in host memory into slots."""
        if self._source is not None:
            reader = partial(self._host.reader, self._source)
            self._ahead.start(
                [b for b in blocks if b < self._durable and not self._near(b)], reader
            )
        if self._slots is not None and self._slab is not None and self._budget.device:
            found = {b: self._host.at(b) for b in blocks if b not in self._slab}
            there = {b: at for b, at in found.items() if at is not None}
            self._slots.bring(there, self._budget.device, keep=blocks)

    def touch(self, blocks: Sequence[int]) -> None:
        """These blocks were looked up again, and needed no copy: keep them as if just used."""
        for block in blocks:
            if self._slab is not None:
                self._slab.touch(block)
            self._host.touch(block)

    def raw(self, blocks: Sequence[int]) -> list[Tensor]:
        """Raw ``[2, H_kv, n, D]`` of each of these blocks, which closed since the last commit."""
        return self._host.raw(blocks)

    def directory(self, first: int, stop: int) -> int | None:
        """The address of a `BlockDirectory` of closed blocks, some of which may be under way there; None
        if one of them lies in the store alone, or is encoded."""
        if not isinstance(self._host, RawBlocks):
            return None
        if self._directory is None:
            self._directory = BlockDirectory(self._table, self._host, self._slab, stop)
        return self._directory.address(first, stop)

    def used(self, blocks: Sequence[int]) -> None:
        """A kernel read these blocks: count them, and begin to copy those without a slot into one."""
        self._located(blocks, wait=False)

    def truncate(self, n_blocks: int) -> None:
        """Forget the blocks from `n_blocks` on."""
        self._host.truncate(n_blocks)
        self._ahead.clear()
        if self._slab is not None:  # raw values are back in groups that are no longer complete
            self._slab.truncate(min(n_blocks, self._host.settled))

    def set_durable(self, n_blocks: int) -> None:
        """The first `n_blocks` blocks are committed and may leave host memory."""
        self._durable = n_blocks
        self._host.commit(n_blocks)
        self._ahead.clear()
        self._shrink()

    def forget(self, first: int) -> None:
        """Blocks before `first` will never be looked up again."""
        gone = range(self._forgotten, first)
        self._host.forget(gone)
        if self._slab is not None:
            self._slab.discard(gone)
        self._forgotten = max(self._forgotten, first)

    def export(self) -> dict[str, Tensor]:
        """What a commit stores of the blocks besides their raw rows: a codec's tensors by name."""
        return self._host.export()

    def restore(self, closed: int, source: BlockSource, rows: Mapping[str, int]) -> None:
        """Go on with `closed` committed blocks of `source`, whose append-only tensors have `rows`.

        Raises:
            CorruptDataError: the codec's tensors are not those of so many blocks.
        """
        self.attach(source)
        self._host.restore(closed, source, rows)
        self._durable = closed

    def _located(self, blocks: Sequence[int], wait: bool = True) -> list[BlockAt]:
        """Where each block lies, in a slot if there is one for it; without `wait` it may be under way."""
        found = {block: at for block in blocks if (at := self._held_at(block)) is not None}
        missing = [block for block in blocks if block not in found]
        if missing:
            self._fetch(missing)
            found |= {b: at for b in missing if (at := self._host.at(b)) is not None}
        if self._slots is not None and self._slab is not None and self._budget.device:
            outside = {block: found[block] for block in blocks if block not in self._slab}
            found |= self._slots.bring(outside, self._budget.device, keep=blocks)
        if wait:
            self._transfers.await_on_device([at.memory for at in found.values()])
        self._shrink()
        return [found[block] for block in blocks]

    def _held(self, block: int) -> Tensor | None:
        """The block from a slot or host memory."""
        kv = None if self._slab is None else self._slab.get(block)
        if kv is not None:
            self.counts.device += 1
            return kv
        self.counts.no_slot += self._budget.device > 0
        kv = self._host.get(block)
        self.counts.host += kv is not None
        return kv

    def _held_at(self, block: int) -> BlockAt | None:
        """Where the block lies, in a slot or host memory."""
        at = None if self._slots is None else self._slots.at(block)
        if at is not None:
            self.counts.device += 1
            return at
        self.counts.no_slot += self._budget.device > 0
        at = self._host.at(block)
        self.counts.host += at is not None
        return at

    def _hold_in_slot(self, block: int, kv: Tensor, keep: Sequence[int] = ()) -> None:
        assert self._slab is not None
        self._slab.put(block, kv, self._budget.device, keep)
        self._transfers.keep([kv])

    def _fetch(self, blocks: Sequence[int]) -> None:
        """Blocks from the store into host memory: those on their way, and all others in one read."""
        if self._source is None:
            raise RuntimeError(f"blocks {blocks} are neither held nor stored")
        read = {b: entry for b in blocks if (entry := self._ahead.take(b)) is not None}
        self.counts.ahead += len(read)
        rest = [block for block in blocks if block not in read]
        if rest:
            read |= zip(rest, self._host.reader(self._source, rest)(), strict=True)
        self.counts.disk += len(blocks)
        self.counts.bytes_read += sum(entry.nbytes for entry in read.values())
        for block in blocks:
            self._host.admit(block, read[block])

    def _shrink(self) -> None:
        if not self._attended:
            self._host.shrink(0)
        elif self._source is not None:
            self._host.shrink(self._budget.host)

    def _near(self, block: int) -> bool:
        """Whether a block lies in a slot or host memory, or is on its way there."""
        in_slot = self._slab is not None and block in self._slab
        return in_slot or self._host.holds(block) or block in self._ahead
