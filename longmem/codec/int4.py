"""int4: two values a byte, keys by channel and values by token (KIVI, arXiv 2402.02750)."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.codec.affine import quantise, restore
from longmem.codec.base import Payload, Written


class INT4:
    """16 levels, 64 tokens to a group: a payload is at most 0.30 of bfloat16's at D = 32. A byte
    holds channel c in its low half and channel c + D / 2 in its high half; D is even."""

    name: Written = "int4"
    bits = 4
    group_tokens = 64

    def encode(self, rows: Tensor) -> Payload:
        """Codes uint8 ``[n, 2, H_kv, D / 2]`` of ``[n, 2, H_kv, D]``."""
        k, v = rows.float().unbind(-3)  # [..., n, H_kv, D]
        k_codes, k_scales = quantise(k, -3, 15)
        v_codes, v_scales = quantise(v, -1, 15)
        low, high = torch.stack((k_codes, v_codes), -3).chunk(2, dim=-1)
        return Payload(low | (high << 4), k_scales, v_scales.squeeze(-2))

    def decode(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """``[n, 2, H_kv, D]``."""
        assert payload.key_scales is not None and payload.value_scales is not None
        codes = torch.cat((payload.codes & 15, payload.codes >> 4), dim=-1)
        k_codes, v_codes = codes.unbind(1)  # [n, H_kv, D]
        k = restore(k_codes, payload.key_scales)
        v = restore(v_codes, payload.value_scales[:, :, None])
        return torch.stack((k, v), 1).to(dtype)
