"""The groups that look-ups go through now, of all shelves one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.memory.shelf import Shelf
from longmem.memory.spec import LayerSpec
from longmem.memory.uploading import upload


@dataclass(frozen=True)
class Held:
    """A shelf of blocks first .. stop that serves.

    Args:
        groups: how many it has.
        page: its first; group g and KV head h have page + g * H_kv + h.
    """

    first: int
    stop: int
    groups: int
    page: int


@dataclass(frozen=True, eq=False)
class Serving:
    """Tables of G groups. Never changed in place: a rewind puts an earlier one back.

    Args:
        shelves: in the order of their blocks; together they have the groups.
        summaries: ``[H_kv, 2 D, G]``: products with queries are twice as fast this way round.
        blocks: ``[H_kv, G, g]`` int16, of which block of its shelf a row is, or -1.
        counts: ``[G]`` rows per group.
        starts: ``[G]`` int64, the first block of the group's shelf.
        pages: ``[G]`` int64, the group's page of KV head 0.
    """

    shelves: tuple[Held, ...]
    summaries: Tensor
    blocks: Tensor
    counts: Tensor
    starts: Tensor
    pages: Tensor

    @classmethod
    def nothing(cls, spec: LayerSpec, group: int) -> Serving:
        """No shelf, of groups of so many rows."""
        none = torch.zeros(0, device=spec.device)
        summaries = none.new_zeros(spec.kv_heads, 2 * spec.dim, 0)
        blocks = none.new_zeros(spec.kv_heads, 0, group, dtype=torch.int16)
        return cls((), summaries, blocks, none, none.long(), none.long())

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        tables = (self.summaries, self.blocks, self.counts, self.starts, self.pages)
        return sum(table.untyped_storage().nbytes() for table in tables)

    def groups_before(self, block: int) -> int:
        """Groups of the shelves that end at or before a block."""
        return sum(shelf.groups for shelf in self.shelves if shelf.stop <= block)

    def groups_of(self, held: Held) -> slice:
        """Where the groups of one of the shelves stand."""
        at = self.groups_before(held.first)
        return slice(at, at + held.groups)

    def within(self, first: int, stop: int) -> tuple[Held, ...]:
        """The shelves that lie within these blocks."""
        return tuple(s for s in self.shelves if first <= s.first and s.stop <= stop)

    def with_shelf(self, held: Held, shelf: Shelf) -> Serving:
        """As this, with one more shelf in place of those within its blocks."""
        after = self.groups_before(held.first), self.groups_before(held.stop)
        device, heads = self.summaries.device, len(shelf.summaries)
        pages = torch.arange(held.groups, device=device) * heads + held.page
        own = (
            upload(shelf.summaries, device).mT,
            upload(shelf.blocks, device),
            upload(shelf.counts, device),
            self.starts.new_full((held.groups,), held.first),
            pages,
        )
        tables = zip(self._tables, own, (2, 1, 0, 0, 0), strict=True)
        shelves = (
            *(s for s in self.shelves if s.stop <= held.first),
            held,
            *(s for s in self.shelves if s.first >= held.stop),
        )
        return Serving(shelves, *(_spliced(old, new, after, dim) for old, new, dim in tables))

    def without(self, shelves: int) -> Serving:
        """As this without the first so many shelves."""
        gone = sum(shelf.groups for shelf in self.shelves[:shelves])
        summaries, blocks = self.summaries[..., gone:].clone(), self.blocks[:, gone:].clone()
        rest = (table[gone:].clone() for table in self._tables[2:])
        return Serving(self.shelves[shelves:], summaries, blocks, *rest)

    @property
    def _tables(self) -> Sequence[Tensor]:
        return self.summaries, self.blocks, self.counts, self.starts, self.pages


def _spliced(old: Tensor, new: Tensor, ends: tuple[int, int], dim: int) -> Tensor:
    """`old` with `new` in place of what lies between `ends`."""
    before, after = old.narrow(dim, 0, ends[0]), old.narrow(dim, ends[1], old.shape[dim] - ends[1])
    return torch.cat((before, new, after), dim=dim)
