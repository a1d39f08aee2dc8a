"""bf16: keys and values rounded to bfloat16; lossless for a model that computes in it."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.codec.base import Payload, Written


class BF16:
    """Two bytes a value and no scales; one rounding of 8 bits, which a second does not change."""

    name: Written = "bf16"
    bits = 16
    group_tokens = 1

    def encode(self, rows: Tensor) -> Payload:
        """Round ``[n, 2, H_kv, D]`` to the nearest bfloat16."""
        return Payload(rows.to(torch.bfloat16))

    def decode(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """``[n, 2, H_kv, D]``."""
        return payload.codes.to(dtype)
