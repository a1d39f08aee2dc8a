"""The rows of a block index that look-ups read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Form = Literal["tokens", "bounds", "means"]
"""What an index keeps of a block: representative keys, channel-wise bounds of its keys, or mean keys
of its sub-blocks."""


@dataclass(frozen=True)
class IndexRows:
    """Rows of N blocks of one layer, block by block, without padding.

    Args:
        keys: ``[H_kv, M, D']`` the rows; un-rotated keys or what stands for them.
        starts: ``[N + 1]`` int64 on the CPU, ascending: the first row of each block; its first
            element need not be 0 if `keys` is a part.
        scaling: the layer's factor of the logits.
        there: `starts` as int32 where `keys` lie, if that is another device: so that nobody waits for
            a copy.
    """

    keys: Tensor
    starts: Tensor
    scaling: float
    there: Tensor | None = None

    @property
    def n_blocks(self) -> int:
        """N."""
        return self.starts.shape[0] - 1

    @property
    def counts(self) -> Tensor:
        """Rows per block ``[N]`` int64, on the device of `keys`."""
        return self.offsets.diff()

    @property
    def offsets(self) -> Tensor:
        """``[N + 1]`` int64 on the device of `keys`: the first row of each block among these."""
        starts = (self.starts if self.there is None else self.there).to(self.keys.device)
        return (starts - starts[0]).long()

    def part(self, first: int, stop: int) -> IndexRows:
        """The rows of blocks `first` up to `stop`, a view."""
        starts = self.starts[first : stop + 1]
        origin = int(self.starts[0])
        keys = self.keys[:, int(starts[0]) - origin : int(starts[-1]) - origin]
        there = None if self.there is None else self.there[first : stop + 1]
        return IndexRows(keys, starts, self.scaling, there)

    def tiles(self, max_rows: int) -> Iterator[IndexRows]:
        """Consecutive parts of whole blocks, of at most `max_rows` rows or one block each."""
        first = 0
        while first < self.n_blocks:
            last = torch.searchsorted(self.starts, self.starts[first] + max_rows, right=True)
            stop = max(int(last) - 1, first + 1)
            yield self.part(first, stop)
            first = stop

    def sum_by_block(self, values: Tensor) -> Tensor:
        """``[H_kv, R, N]``: the sum of values ``[H_kv, R, M]`` float32 over each block's rows.

        Which of torch's sums over ragged runs is fastest depends on what lies next to each other:
        the rows of one query, or, where many queries were multiplied at once, the queries of a row.
        """
        offsets = self.offsets
        if values.stride(2) == 1:
            each = values.flatten(0, 1)  # [H_kv * R, M]
            sums = [torch.segment_reduce(x, "sum", offsets=offsets, axis=0) for x in each]
            return torch.stack(sums).view(*values.shape[:2], -1)
        rows = torch.arange(values.shape[2], device=values.device)
        bags = [  # a block is a bag of embeddings
            functional.embedding_bag(rows, head, offsets, mode="sum", include_last_offset=True)
            for head in values.mT.contiguous()
        ]
        return torch.stack(bags).mT

    def mean_by_block(self, values: Tensor) -> Tensor:
        """``[H_kv, R, N]``: the mean of values ``[H_kv, R, M]`` float32 over each block's rows."""
        return self.sum_by_block(values) / self.counts

    def max_by_block(self, values: Tensor) -> Tensor:
        """``[H_kv, R, N]``: the largest of values ``[H_kv, R, M]`` float32 of each block's rows."""
        by_row = values.permute(2, 0, 1).reshape(values.shape[2], -1)  # [M, H_kv * R]
        best = torch.segment_reduce(by_row, "max", offsets=self.offsets, axis=0)
        return best.T.reshape(*values.shape[:2], -1)
