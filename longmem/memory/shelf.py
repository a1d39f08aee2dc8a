"""One shelf: rows of consecutive blocks, cut into groups of similar ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from longmem.retrieval import group_order, summarise

ABSENT = -1

RowsOf = Callable[[int], tuple[Tensor, Tensor]]
"""KV head -> its rows ``[M, D]``, and of which block of the shelf each is ``[M]``."""


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


def form(rows_of: RowsOf, kv_heads: int, size: int) -> Shelf:
    """Cut the rows of each KV head into groups of `size`, head by head: a large shelf takes a good deal
    of memory, and what is needed on the way should not take several times as much."""
    summaries, blocks, pages = [], [], torch.empty(0)
    for head in range(kv_heads):
        rows, of = rows_of(head)
        order, spare = group_order(rows[None], size)[0], -len(rows) % size
        groups = functional.pad(rows[order], (0, 0, 0, spare)).view(-1, size, rows.shape[1])
        if not head:
            pages = groups.new_empty(len(groups), kv_heads, *groups.shape[1:])
        pages[:, head] = groups
        of = functional.pad(of[order], (0, spare), value=ABSENT).view(-1, size)
        summaries.append(summarise(groups, of != ABSENT))
        blocks.append(of.short())
    counts = (blocks[0] != ABSENT).sum(1).float()  # alike for all heads
    return Shelf(torch.stack(summaries), torch.stack(blocks), counts, pages.flatten(0, 1))


def rows_of_shelves(pages: Tensor, blocks: Tensor, first: Tensor) -> RowsOf:
    """The rows of several shelves, to be cut anew.

    Args:
        pages: ``[G * H_kv, g, D]`` of all shelves.
        blocks: ``[H_kv, G, g]`` as `Shelf.blocks` of all shelves.
        first: ``[G]`` what to add to these.
    """
    kv_heads, groups, size = blocks.shape
    by_head = pages.view(groups, kv_heads, size, pages.shape[2])

    def rows_of(head: int) -> tuple[Tensor, Tensor]:
        present = blocks[head] != ABSENT
        numbers = blocks[head].long() + first[:, None]
        return by_head[:, head][present], numbers[present]

    return rows_of
