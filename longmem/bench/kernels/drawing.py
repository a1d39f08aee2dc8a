"""Inputs of cases, and how far a result is from its twin's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from longmem.bench.kernels.size import TINY, Size

ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of the largest value: weights and results are each rounded to the dtype once, which is half of this."""
SUMS = 5e-5
"""Of the largest value: float32 sums of thousands of terms in another order."""


class Draw:
    """Random tensors of one dtype on one device, the same in every process.

    Args:
        dtype, device: of the tensors.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._source = torch.Generator(device).manual_seed(1)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Normal values of variance 1."""
        made = torch.empty(shape, dtype=dtype or self._dtype, device=self._device)
        return made.normal_(generator=self._source)


def by_definition(size: Size) -> bool:
    """Whether the naive forms, which go from key to key, are the twins: at ragged sizes. At full sizes
    it is the torch forms, which the tests hold against the naive ones."""
    return size.segment <= TINY.segment


def apart(got: Tensor, expected: Tensor, allowed: float) -> float:
    """The greatest difference as a share of what is allowed; infinite where that is NaN, which would be
    lost among other numbers: no order has a place for it.

    Args:
        got, expected: alike in shape.
        allowed: share of the greatest expected value.
    """
    if not got.numel():
        return 0.0
    expected = expected.to(got.device, torch.float32)
    difference = (got.float() - expected).abs().max() / expected.abs().max()
    share = float(difference) / allowed
    return math.inf if math.isnan(share) else share
