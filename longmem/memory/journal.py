"""K/V of the tokens read since the last commit, on their way to the store."""

from __future__ import annotations

import torch
from torch import Tensor

_MANY_TOKENS = 64


class Journal:
    """What each layer's new tokens brought, in the order it was read.

    Args:
        layers: how many layers there are.
    """

    def __init__(self, layers: int) -> None:
        self._parts: list[list[Tensor]] = [[] for _ in range(layers)]
        self._start = 0

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keep un-rotated keys and values ``[H_kv, T, D]`` of one pass."""
        self._parts[layer].append(torch.stack((k, v)))  # [2, H_kv, T, D]

    def settle(self, tokens: int) -> None:
        """A pass of `tokens` tokens is through: long reads go to the host, single tokens are not
        worth a transfer."""
        if tokens >= _MANY_TOKENS:
            for parts in self._parts:
                parts[-1] = parts[-1].cpu()

    def shorten(self, n_tokens: int) -> None:
        """Keep what was read before position `n_tokens`."""
        for parts in self._parts:
            _shorten(parts, n_tokens - self._start)

    def export(self) -> list[Tensor]:
        """Per layer ``[T, 2, H_kv, D]``, copies."""
        return [
            torch.cat([part.cpu() for part in parts], dim=2).permute(2, 0, 1, 3).contiguous()
            for parts in self._parts
        ]

    def clear(self, n_tokens: int) -> None:
        """Everything up to position `n_tokens` is committed."""
        self._start = n_tokens
        for parts in self._parts:
            parts.clear()


def _shorten(parts: list[Tensor], tokens: int) -> None:
    """Keep the first `tokens` tokens of entries ``[2, H_kv, T, D]``."""
    kept = 0
    for i, part in enumerate(parts):
        if kept + part.shape[2] > tokens:
            parts[i] = part[:, :, : tokens - kept]
            del parts[i + 1 :]
            break
        kept += part.shape[2]
    if parts and parts[-1].shape[2] == 0:
        parts.pop()
