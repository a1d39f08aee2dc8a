"""Quest's scorer: the largest logit any key of a block could have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from longmem.retrieval.index_rows import Form, IndexRows
from longmem.retrieval.scorer import BlockScorer, grouped


@dataclass(frozen=True)
class Bounds(BlockScorer):
    """Upper bound of q k over a block: the sum over channels of max(q max_c, q min_c).

    Quest (arXiv 2406.10774, section 3.3), with max_c and min_c the largest and smallest value of
    channel c among the block's keys. Split by the sign of q the bound is one product,
    ``[relu(q), -relu(-q)] . [max, min]``. Quest asks it of the token being decoded; the query here
    is the span's mean, and bounds are summed over the heads that choose together.
    """

    name: str = "bounds"
    form: ClassVar[Form] = "bounds"

    def rows(self, q: Tensor, kv_heads: int) -> Tensor:
        """As `BlockScorer.rows`; R = H / H_kv, D' = 2 D."""
        mean = grouped(q.mean(1, keepdim=True), kv_heads)
        return torch.cat((mean.clamp(min=0), mean.clamp(max=0)), dim=-1)

    def fold(self, logits: Tensor, blocks: IndexRows) -> Tensor:
        """As `BlockScorer.fold`: a block has one row, which is its bound."""
        return logits

    def tally(self, folded: Tensor) -> Tensor:
        """As `BlockScorer.tally`."""
        return folded.sum(1)
