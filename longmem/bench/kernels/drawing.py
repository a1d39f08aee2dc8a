"""Inputs of cases, and how far a result is from its twin's."""

from __future__ import annotations

import torch
from torch import Tensor

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


def apart(got: Tensor, expected: Tensor, allowed: float) -> float:
    """The greatest difference as a share of what is allowed.

    Args:
        got, expected: alike in shape.
        allowed: share of the greatest expected value.
    """
    if not got.numel():
        return 0.0
    expected = expected.float()
    difference = (got.float() - expected).abs().max() / expected.abs().max()
    return float(difference) / allowed
