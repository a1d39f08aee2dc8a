"""What a full-attention layer keeps: initial tokens, semantic blocks, pending tokens, window."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.block_at import scattered
from longmem.memory.blocks import BlockTable
from longmem.memory.compressive import CompressiveMemory
from longmem.memory.layer import LayerMark, LayerMemory
from longmem.memory.lookup import Lookup
from longmem.memory.placement import BlockTier
from longmem.memory.recycled import RecycledSet
from longmem.memory.role import LayerRole
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.memory.working_set import WorkingSet


class BlockLayer(LayerMemory):
    """The state of a full-attention layer, and how it goes back, is stored and comes again.

    Args:
        spec: the layer.
        config: the memory settings.
        table: where blocks end; shared by the session's layers.
        tier: where its closed blocks lie.
        compressive: the layer's compressive memory, or None.
    """

    def __init__(
        self,
        spec: LayerSpec,
        config: MemoryConfig,
        table: BlockTable,
        tier: BlockTier,
        compressive: CompressiveMemory | None = None,
    ) -> None:
        self.role = role = LayerRole.of(spec, config)
        chosen = role.indexed and config.repr_topk < config.block_size
        super().__init__(spec, config.n_local, keeps_mass=chosen)
        self.mass_of = config.repr_by if chosen else None
        self.table = table
        self.lookup = Lookup(spec, config)
        self.tier = tier
        room = config.topk + config.contiguity if role.attends and not role.takes_all else 0
        self.working_set = WorkingSet(
            spec, table.n_init, room, config.block_size, config.far_positions == "ordered"
        )
        self.closed = -1
        """Closed blocks; -1 while not even the initial tokens have left the window."""
        self.first = 0
        """The oldest block that can be looked up; older ones were dropped (MemoryConfig.max_blocks)."""
        self.compressive = compressive
        self.want_lse = config.compressive is not None and config.compressive.mix == "lse"
        self._folds_dropped = self.want_lse and role.attends
        self.recycled: RecycledSet | None = None
        if config.topk_tokens is not None:
            self.recycled = RecycledSet(
                spec, config.topk_tokens, config.pool_tokens, config.n_local, config.repr_by
            )
        self._max_blocks = config.max_blocks
        self.exported_blocks = 0
        """Blocks of which the representatives are stored."""

    def close(self, due: int) -> None:
        """Move initial tokens and blocks that are due out of the local buffer."""
        if self.closed < 0 <= due:
            n = self.table.n_init
            self.working_set.set_initial(self.local.raw[:, :n], self.local.v[:, :n])
            if self.want_lse:  # there, what is attended to must not count again
                self.local.drop(n)
            else:
                self._leave(n)
            self.closed = 0
        if self.closed < due:
            self.tier.put_many(self.closed, self._closing(due))
        while self.closed < due:
            start, stop = self.table.span(self.closed)
            n = stop - start
            if self.role.indexed:
                self.lookup.add(self.local.raw[:, :n], self.local.mass[:, :n])
            self._leave(n)
            self.closed += 1
        if self._max_blocks is not None:
            self._drop(max(0, self.closed - self._max_blocks))

    def _closing(self, due: int) -> list[Tensor]:
        """Each ``[2, H_kv, n, D]`` of the blocks that are due, a copy."""
        raw, v = self.local.raw, self.local.v
        first = self.table.edges[self.closed]
        spans = [self.table.span(block) for block in range(self.closed, due)]
        at = [(start - first, stop - first) for start, stop in spans]
        if self.spec.kernels:
            return scattered(raw, v, at)
        return [torch.stack((raw[:, i:j], v[:, i:j])) for i, j in at]

    def _leave(self, n: int) -> None:
        """The n oldest tokens leave the local buffer."""
        if self.compressive is not None and not self._folds_dropped:
            self.compressive.fold(self.local.raw[:, :n], self.local.v[:, :n])
        self.local.drop(n)

    def _drop(self, first: int) -> None:
        """Blocks before `first` can be looked up no more."""
        while self.first < first:
            if self.compressive is not None and self._folds_dropped:
                ((k, v),) = self.tier.values([self.first])
                self.compressive.fold(k, v)
            self.first += 1
        self._drop_front()

    def mark(self) -> LayerMark:
        """Where the layer stands now; K/V is not copied, only the attention sums are."""
        local = self.local
        mass, held = local.mass.clone(), self._mark_compressive()
        return LayerMark(local.first, len(local), local.place, mass, self.closed, held)

    def rewind(self, mark: LayerMark) -> None:
        if self.closed == mark.closed and self.local.place == mark.place:
            self.local.rewind(mark.length, mark.saved)
        else:
            k, v = self._rows_since(mark)
            self.load(k, v, mark.saved, mark.first, mark.place)
        self.truncate(mark.closed)
        self._rewind_compressive(mark)

    def truncate(self, closed: int) -> None:
        """Forget the blocks from `closed` on, and the initial tokens if it is -1."""
        blocks = max(closed, 0)
        self.lookup.truncate(blocks)
        self.tier.truncate(blocks)
        if closed < 0:
            k, v = self.working_set.initial
            self.working_set.set_initial(k[:, :0], v[:, :0])
        self.working_set.clear()
        if self.recycled is not None:
            self.recycled.clear()
        self.closed = closed
        if self._max_blocks is not None:
            self.first = max(0, closed - self._max_blocks)
            self._drop_front()

    def _drop_front(self) -> None:
        """Let look-ups choose among blocks from `first` on."""
        if self.role.indexed:
            self.lookup.drop_front(self.first)

    def commit(self) -> None:
        """What was read is durable: no `rewind` will go behind this point."""
        self.exported_blocks = max(self.closed, 0)
        self.tier.set_durable(self.exported_blocks)
        self.tier.forget(self.first)
        if self.role.indexed:
            self.lookup.release(self.first)

    def restore(self, closed: int, stored: Stored) -> None:
        """Become a layer of `closed` blocks (-1: not even initial tokens) whose index was stored."""
        self.closed = closed
        self.exported_blocks = max(closed, 0)
        if self._max_blocks is not None:
            self.first = max(0, closed - self._max_blocks)
        if self.role.indexed:
            self.lookup.restore(stored, self.exported_blocks, self.first)

    @property
    def folded(self) -> tuple[int, int]:
        """Absolute positions (start, stop) of the tokens the compressive memory was given."""
        if self._folds_dropped:
            return self.table.edges[0], self.table.edges[self.first]
        return min(self.table.edges[0] if self.want_lse else 0, self.local.first), self.local.first

    def _rows_since(self, mark: LayerMark) -> tuple[Tensor, Tensor]:
        """Raw K/V ``[H_kv, mark.length, D]`` from mark.first on, some of it in blocks by now."""
        parts = []
        if mark.closed < 0 <= self.closed:
            parts.append(torch.stack(self.working_set.initial))
        closed_since = range(max(mark.closed, 0), max(self.closed, 0))
        parts.extend(kv.to(self.spec.device) for kv in self.tier.raw(closed_since))
        parts.append(torch.stack((self.local.raw, self.local.v)))
        k, v = torch.cat(parts, dim=2)[:, :, : mark.length]
        return k, v
