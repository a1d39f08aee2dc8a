"""The rows of an index in shelves of consecutive blocks, each grouped once when it is full."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from longmem.errors import CorruptDataError
from longmem.memory.pages import GroupPages
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.retrieval import group_order, summarise

_ABSENT = -1


@dataclass(frozen=True)
class Grid:
    """How look-ups go through groups; see `MemoryConfig`.

    Args:
        above: candidates above which they do.
        shelf: blocks of a shelf.
        group: rows of a group.
        probe: groups per KV head that a look-up reads.
    """

    above: int
    shelf: int
    group: int
    probe: int


class Shelves:
    """The full shelves of one layer, ``grid.shelf`` blocks each, counted from block 0.

    A shelf's rows are cut per KV head into groups of ``grid.group`` similar rows, the last one
    padded. Of every group a summary and the block of each row stay in memory; the rows themselves
    are pages, which may lie in the store alone. Where a shelf ends depends on block numbers alone,
    so that groups do not depend on passes, commits or rewinds.

    Long shelves are worth their price: what matters is how similar the rows of a group are, which
    grows with the rows there are to group. Groups of consecutive rows lose a fifth of the evidence
    where these lose none, since neighbouring turns are about different things.

    Groups of a shelf are numbered 0 .. G - 1 for all KV heads alike; page ``group * H_kv + head``.

    Args:
        spec: the layer.
        grid: sizes.
    """

    def __init__(self, spec: LayerSpec, grid: Grid) -> None:
        self.grid = grid
        self._heads, self._name = spec.kv_heads, f"{spec.index}.{grid.shelf}x{grid.group}"
        self.pages = GroupPages(grid.group, spec.dim, spec.dtype, spec.device)
        self._ends = [0]  # groups up to and with each shelf
        self._base = 0  # groups before this one were released
        shape = (self._heads, 0)
        self._summaries = torch.zeros(*shape, 2 * spec.dim, device=spec.device)
        self._blocks = torch.zeros(*shape, grid.group, dtype=torch.int16, device=spec.device)
        self._counts = torch.zeros(0, device=spec.device)  # rows per group
        self._starts = torch.zeros(0, dtype=torch.int64, device=spec.device)  # block per group
        self._exported = 0

    def __len__(self) -> int:
        """Full shelves, released ones included."""
        return len(self._ends) - 1

    @property
    def stop(self) -> int:
        """Blocks on full shelves."""
        return len(self) * self.grid.shelf

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.resident_bytes + self.pages.bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of what never leaves memory: summaries, and which block a row is of."""
        tables = (self._summaries, self._blocks, self._counts, self._starts)
        return sum(table.untyped_storage().nbytes() for table in tables)

    def attach(self, source: BlockSource) -> None:
        """Read pages that are not in memory from `source`."""
        self.pages.reader = partial(source.read_blocks, f"shelf_rows.{self._name}")

    def add(self, rows: Tensor, counts: Tensor) -> None:
        """Group the rows ``[H_kv, M, D]`` of the next shelf, of which each block has `counts`
        ``[shelf]``."""
        block = torch.repeat_interleave(torch.arange(len(counts)), counts).to(rows.device)
        order, size = group_order(rows, self.grid.group), self.grid.group
        spare = -rows.shape[1] % size
        sorted_rows = torch.stack([head[own] for head, own in zip(rows, order, strict=True)])
        padded = functional.pad(sorted_rows, (0, 0, 0, spare))
        groups = padded.reshape(self._heads, -1, size, rows.shape[2])
        blocks = functional.pad(block[order], (0, spare), value=_ABSENT)
        blocks = blocks.reshape(self._heads, -1, size)
        self.pages.put(groups.transpose(0, 1).flatten(0, 1))
        self._append(summarise(groups, blocks != _ABSENT), blocks.short())

    def truncate(self, shelves: int) -> None:
        """Forget the shelves from `shelves` on."""
        if shelves >= len(self):
            return
        groups = self._ends[shelves]
        self.pages.truncate(groups * self._heads)
        n = groups - self._base
        self._keep(slice(0, n))
        del self._ends[shelves + 1 :]
        self._exported = min(self._exported, shelves)

    def release(self, first: int) -> None:
        """Blocks before `first` will never be candidates again: let go of shelves that hold no other,
        once they are half of all."""
        group = self._first_group(first)
        self.pages.drop_front(group * self._heads)
        gone = group - self._base
        if 2 * gone > self._counts.shape[0]:
            self._keep(slice(gone, None))
            self._base = group

    def candidates(self, first: int) -> tuple[int, Tensor, Tensor]:
        """The groups of shelves that hold blocks from `first` on: the first group, their summaries
        ``[H_kv, G, 2 D]`` and rows per group ``[G]``."""
        group = self._first_group(first)
        at = group - self._base
        return group, self._summaries[:, at:], self._counts[at:]

    def read(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The rows ``[H_kv, p * g, D]`` of different groups ``[H_kv, p]`` of each KV head, and the
        block of each row ``[H_kv, p * g]``, -1 where there is none.

        Raises:
            CorruptDataError: as the store's.
        """
        heads = torch.arange(self._heads, device=groups.device)[:, None]
        pages = self.pages.read((groups * self._heads + heads).flatten().cpu())
        at = groups - self._base
        blocks = self._blocks[heads, at].long()
        blocks = torch.where(blocks == _ABSENT, blocks, blocks + self._starts[at][..., None])
        return pages.reshape(*blocks.flatten(1).shape, -1), blocks.flatten(1)

    def export(self) -> dict[str, Tensor]:
        """The shelves that filled since the last `commit`, tensors by name."""
        if self._exported == len(self):
            return {}
        at = self._ends[self._exported] - self._base
        counts = torch.tensor(self._ends[self._exported :], dtype=torch.int32).diff()
        tensors = {
            "rows": self.pages.since(self._ends[self._exported] * self._heads),
            "summaries": self._summaries[:, at:].transpose(0, 1),
            "blocks": self._blocks[:, at:].transpose(0, 1),
            "rows_per_group": self._counts[at:].int(),
            "groups": counts,
        }
        return {f"shelf_{k}.{self._name}": t.contiguous().cpu() for k, t in tensors.items()}

    def commit(self) -> None:
        """What `export` gave is durable."""
        self._exported = len(self)
        self.pages.commit()

    def load(self, stored: Stored, blocks: int) -> None:
        """Hold the stored shelves of a session of `blocks` blocks, their rows in the store alone.

        Raises:
            CorruptDataError: the stored tensors do not belong together.
        """
        names = {
            k: f"shelf_{k}.{self._name}"
            for k in ("groups", "rows", "summaries", "blocks", "rows_per_group")
        }
        n = stored.length(names["groups"])
        if not n:
            return
        ends = stored.part(names["groups"], 0, n).cumsum(0).tolist()
        rows = {k: stored.length(name) for k, name in names.items() if k != "groups"}
        total = ends[-1]
        expected = dict.fromkeys(rows, total) | {"rows": total * self._heads}
        if n * self.grid.shelf > blocks or rows != expected:
            raise CorruptDataError(
                f"the block index of layer {self._name.split('.')[0]} is stored incompletely: {n} shelves "
                f"of {self.grid.shelf} blocks with {rows} rows, {expected} expected, of a session of "
                f"{blocks} blocks; open it with rebuild=True"
            )
        part = {k: stored.part(name, 0, total) for k, name in names.items() if k != "rows"}
        self._ends = [0, *ends]
        device = self._summaries.device
        self._summaries = part["summaries"].transpose(0, 1).contiguous().to(device)
        self._blocks = part["blocks"].transpose(0, 1).contiguous().to(device)
        self._counts = part["rows_per_group"].float().to(device)
        self._starts = torch.repeat_interleave(
            torch.arange(n) * self.grid.shelf, part["groups"].long()
        ).to(device)
        self.pages.adopt(total * self._heads)
        self._exported = n

    def _first_group(self, block: int) -> int:
        return self._ends[min(block // self.grid.shelf, len(self))]

    def _append(self, summaries: Tensor, blocks: Tensor) -> None:
        """One more shelf: ``[H_kv, G, 2 D]``, ``[H_kv, G, g]``."""
        n = summaries.shape[1]
        counts = (blocks[0] != _ABSENT).sum(1).float()
        starts = self._starts.new_full((n,), self.stop)
        self._summaries = torch.cat((self._summaries, summaries), dim=1)
        self._blocks = torch.cat((self._blocks, blocks), dim=1)
        self._counts = torch.cat((self._counts, counts))
        self._starts = torch.cat((self._starts, starts))
        self._ends.append(self._ends[-1] + n)

    def _keep(self, groups: slice) -> None:
        self._summaries = self._summaries[:, groups].clone()
        self._blocks = self._blocks[:, groups].clone()
        self._counts = self._counts[groups].clone()
        self._starts = self._starts[groups].clone()
