"""What a step says."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Said(NamedTuple):
    """The model's answer to each of S tokens.

    Args:
        logits: ``[S, V]`` float32.
        best: ``[S]`` int64, the likeliest next tokens.
    """

    logits: Tensor
    best: Tensor
