"""Scores of blocks by soft vote, and the choice of the best, on the device from beginning to end."""

from __future__ import annotations

from longmem.ops.block_scoring.dispatch import (
    Choice,
    choose,
    estimate,
    fold,
    fold_blocks,
    score,
    score_and_choose,
)
from longmem.ops.block_scoring.naive import choose_naive, fold_naive, score_naive
from longmem.ops.block_scoring.table import Bounds, IndexRow, table_of

__all__ = [
    "Bounds",
    "Choice",
    "IndexRow",
    "choose",
    "choose_naive",
    "estimate",
    "fold",
    "fold_blocks",
    "fold_naive",
    "score",
    "score_and_choose",
    "score_naive",
    "table_of",
]
