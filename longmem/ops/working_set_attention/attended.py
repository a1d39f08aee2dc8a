"""What attention over the working set gives."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

MassOf = Literal["attention", "logits"]
"""What is summed per local key: attention weights, or the logits of later queries (InfLLM, eq. 1)."""


class Attended(NamedTuple):
    """Result of `attend`.

    Args:
        out: ``[H, T, D]``.
        mass: ``[H_kv, L]`` float32, see `MassOf`; summed over queries and the head group, and only
            over queries that had the key in their window; None unless wanted.
        lse: ``[H, T]`` float32, log of the softmax's denominator; None unless wanted.
        weights: ``[H_kv, G, F + L]`` float32, attention of the last query; None unless wanted.
    """

    out: Tensor
    mass: Tensor | None
    lse: Tensor | None = None
    weights: Tensor | None = None
