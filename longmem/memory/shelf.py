"""One shelf: rows of consecutive blocks, cut into groups of similar ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from longmem.retrieval import group_order, summarise

ABSENT = -1


@dataclass(frozen=True, eq=False)
class Shelf:
    """The groups of a shelf; the last one is padded.

    Args:
        summaries: ``[H_kv, G, 2 D]`` of each group.
        blocks: ``[H_kv, G, g]`` int16, of which block of the shelf each row is; -1 where there is none.
        counts: ``[G]`` float32, rows per group.
        rows: ``[G * H_kv, g, D]``, page by page.
    """

    summaries: Tensor
    blocks: Tensor
    counts: Tensor
    rows: Tensor

    @property
    def groups(self) -> int:
        """G."""
        return self.counts.shape[0]


def form(rows: Tensor, blocks: Tensor, size: int) -> Shelf:
    """Cut rows ``[H_kv, M, D]``, of blocks ``[H_kv, M]`` of the shelf, into groups of `size`."""
    order, spare = group_order(rows, size), -rows.shape[1] % size
    sorted_rows = torch.stack([head[own] for head, own in zip(rows, order, strict=True)])
    kv_heads, _, dim = rows.shape
    groups = functional.pad(sorted_rows, (0, 0, 0, spare)).view(kv_heads, -1, size, dim)
    of = functional.pad(blocks.gather(1, order), (0, spare), value=ABSENT)
    of = of.view(kv_heads, -1, size)
    present = of != ABSENT
    pages = groups.transpose(0, 1).flatten(0, 1)
    return Shelf(summarise(groups, present), of.short(), present[0].sum(1).float(), pages)


def joined(pages: Tensor, blocks: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """The rows ``[H_kv, M, D]`` of several shelves and their blocks ``[H_kv, M]``, as `form` takes them.

    Args:
        pages: ``[G * H_kv, g, D]`` of all shelves.
        blocks: ``[H_kv, G, g]`` as `Shelf.blocks` of all shelves.
        first: ``[G]`` what to add to these.
    """
    kv_heads, groups, _ = blocks.shape
    rows = pages.view(groups, kv_heads, *pages.shape[1:]).transpose(0, 1).flatten(1, 2)
    present = (blocks[0] != ABSENT).flatten()  # alike for all heads
    numbers = (blocks.long() + first[:, None]).flatten(1)
    return rows[:, present], numbers[:, present]
