"""What a codec is, and what it makes of a group of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

Written = Literal["bf16", "int8", "int4"]
"""Names of codecs."""


@dataclass(frozen=True, eq=False)
class Payload:
    """Encoded keys and values of n consecutive tokens of one group.

    Args:
        codes: ``[n, 2, H_kv, D']``, keys then values; D' bytes or elements for D channels. Several
            groups of n tokens may be encoded at once: then all tensors have a dimension in front.
        key_scales: ``[1, H_kv, D, 2]`` (step, smallest) of each key channel of the group.
        value_scales: ``[n, H_kv, 2]`` (step, smallest) of each token's values.
    """

    codes: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name."""
        named = {
            "codes": self.codes,
            "key_scales": self.key_scales,
            "value_scales": self.value_scales,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def __getitem__(self, group: int) -> Payload:
        """One of several groups: a view, but for its key scales, which its blocks may go on to share."""
        own = Payload(**{name: tensor[group] for name, tensor in self.tensors.items()})
        return replace(own, key_scales=None if own.key_scales is None else own.key_scales.clone())

    def rows(self, start: int, stop: int) -> Payload:
        """The tokens start .. stop, a view."""
        values = None if self.value_scales is None else self.value_scales[start:stop]
        return Payload(self.codes[start:stop], self.key_scales, values)

    def copied(self) -> Payload:
        """A copy of its rows: a view would keep the whole group's bytes."""
        values = None if self.value_scales is None else self.value_scales.clone()
        return Payload(self.codes.clone(), self.key_scales, values)

    def to(self, device: torch.device) -> Payload:
        """The same on another device."""
        return Payload(**{k: t.to(device, non_blocking=True) for k, t in self.tensors.items()})


class Codec(Protocol):
    """Writes groups of tokens and reads any rows of them."""

    @property
    def name(self) -> Written:
        """As `MemoryConfig.codec` has it."""

    @property
    def bits(self) -> int:
        """Of one code: 16 (bfloat16), 8 or 4."""

    @property
    def group_tokens(self) -> int:
        """Fewest tokens of a group: what key scales are shared by."""

    def encode(self, rows: Tensor) -> Payload:
        """Keys and values ``[n, 2, H_kv, D]`` of one group, as they will be stored; or
        ``[groups, n, 2, H_kv, D]``, each group by itself."""

    def decode(self, payload: Payload, dtype: torch.dtype) -> Tensor:
        """``[n, 2, H_kv, D]`` of the group's rows in `payload`; the same for a row whichever others
        are decoded with it."""
