"""K/V of the tokens read since the last commit, on their way to the store."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.memory.arena import arena
from longmem.memory.transfers import transfers_of

_MANY_TOKENS = 64
"""Passes of so many tokens go to the host as they are; the tokens of shorter ones gather first, because
one alone is not worth a transfer."""


class Journal:
    """What each layer's new tokens brought, in the order it was read.

    Args:
        layers: how many layers there are.
    """

    def __init__(self, layers: int) -> None:
        self._layers = [_LayerJournal() for _ in range(layers)]
        self._start = 0

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keep un-rotated keys and values ``[H_kv, T, D]`` of one pass."""
        self._layers[layer].write(k, v)

    def settle(self, tokens: int) -> None:
        """A pass of `tokens` tokens is through: what is worth a transfer goes to the host."""
        for layer in self._layers:
            layer.settle(tokens)

    def shorten(self, n_tokens: int) -> None:
        """Keep what was read before position `n_tokens`."""
        for layer in self._layers:
            layer.shorten(n_tokens - self._start)

    def export(self) -> list[Tensor]:
        """Per layer ``[T, 2, H_kv, D]``, copies."""
        sent = [layer.send() for layer in self._layers]  # all, before the first is waited for
        return [layer.export(parts) for layer, parts in zip(self._layers, sent, strict=True)]

    def clear(self, n_tokens: int) -> None:
        """Everything up to position `n_tokens` is committed."""
        self._start = n_tokens
        for layer in self._layers:
            layer.shorten(0)


class _LayerJournal:
    """One layer's K/V: pieces ``[2, H_kv, T, D]``, then what gathers in a buffer that is used again and
    again, so that a decode step allocates nothing."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._buffer: Tensor | None = None  # [2, H_kv, 2 * _MANY_TOKENS, D]
        self._gathered = 0
        self._device = torch.device("cpu")

    def write(self, k: Tensor, v: Tensor) -> None:
        tokens, self._device = k.shape[1], k.device
        if tokens >= _MANY_TOKENS:
            self._empty_buffer()
            self._parts.append(torch.stack((k, v)))
            return
        if self._buffer is None:
            self._buffer = k.new_empty(2, k.shape[0], 2 * _MANY_TOKENS, k.shape[2])
        if self._gathered + tokens > self._buffer.shape[2]:
            self._empty_buffer()
        new = self._buffer[:, :, self._gathered : self._gathered + tokens]
        new[0].copy_(k)
        new[1].copy_(v)
        self._gathered += tokens

    def settle(self, tokens: int) -> None:
        if tokens >= _MANY_TOKENS:
            self._parts[-1] = _to_host(self._parts[-1])
        elif self._gathered >= _MANY_TOKENS:
            self._empty_buffer()

    def shorten(self, tokens: int) -> None:
        """Keep the first `tokens` tokens."""
        parts, self._parts = self._parts, []
        for part in parts:
            if tokens > 0:
                self._parts.append(part[:, :, :tokens])
            tokens -= part.shape[2]
        self._gathered = min(self._gathered, max(tokens, 0))

    def send(self) -> list[Tensor]:
        """All parts on the host, perhaps still under way."""
        if self._buffer is None or (self._parts and not self._gathered):
            return self._parts
        return [*self._parts, self._copied(self._buffer)]

    def export(self, parts: list[Tensor]) -> Tensor:
        """What `send` gave, as one tensor."""
        transfers_of(self._device).await_on_host(parts)
        return torch.cat(parts, dim=2).permute(2, 0, 1, 3).contiguous()

    def _empty_buffer(self) -> None:
        if self._buffer is not None and self._gathered:
            self._parts.append(self._copied(self._buffer))
        self._gathered = 0

    def _copied(self, buffer: Tensor) -> Tensor:
        """What gathered: a copy, because the buffer is written again before it has left the device."""
        held = buffer[:, :, : self._gathered]
        return _to_host(held.clone(memory_format=torch.contiguous_format))


def _to_host(part: Tensor) -> Tensor:
    """A contiguous tensor in pinned host memory, perhaps still under way; itself if it lies on the host."""
    if part.device.type == "cpu":
        return part
    room = arena(True).take(part.nbytes).view(part.dtype).view(part.shape)
    transfers_of(part.device).send([(room, part)])
    return room
