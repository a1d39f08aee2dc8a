"""What memory has to know of one attention layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longmem.ops.rotary import Rotary


@dataclass(frozen=True, eq=False)
class LayerSpec:
    """One attention layer, as measured on the loaded model.

    Args:
        index: number of the layer.
        heads, kv_heads, dim: H, H_kv and D.
        rotary: how it rotates queries and keys; None where it does not (NoPE).
        sliding: tokens of the layer's own sliding window; None for full attention.
        scaling: factor of the logits.
        dtype, device: of its keys and values.
    """

    index: int
    heads: int
    kv_heads: int
    dim: int
    rotary: Rotary | None
    sliding: int | None
    scaling: float
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's key and value."""
        return 2 * self.kv_heads * self.dim * self.dtype.itemsize
