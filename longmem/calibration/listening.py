"""A compressive memory that is read but not mixed in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from longmem.config import Compressive, MemoryConfig
from longmem.memory import Gates, LayerSpec, SessionMemory
from longmem.memory.compressive import CompressiveMemory
from longmem.ops.compressive import EPS, retrieve


class Heard(NamedTuple):
    """What queries of one layer were given.

    Args:
        start: the first of them, counted within the pass.
        local: ``[H, T, D]`` attention output of window, initial tokens and looked-up blocks.
        value: ``[H, T, D]`` what the memory holds for them.
        level: ``[H, T]`` log of the memory's mass minus log of attention's denominator; None unless
            mix = "lse".
    """

    start: int
    local: Tensor
    value: Tensor
    level: Tensor | None


class Listening(CompressiveMemory):
    """Stands where the engine's memory stands, so that it is given what that is given: the same tokens
    leave the window, in the same chunks, and the same queries read it. Mixes nothing in."""

    def __init__(self, spec: LayerSpec, config: Compressive, gates: Gates, chunk: int) -> None:
        super().__init__(spec, config, gates, chunk)
        self._heard: list[Heard] = []
        self._at = 0

    def mix(self, out: Tensor, q: Tensor, lse: Tensor | None) -> Tensor:
        """Note what `CompressiveMemory.mix` would mix, and give `out` back."""
        start, self._at = self._at, self._at + q.shape[1]
        if not self.empty:
            held, mass = retrieve(self._features(q), self.state, self.config.rule)
            mass = mass.clamp(min=EPS)
            by_lse = self.config.mix == "lse" and lse is not None
            level = mass.log() - lse if by_lse and lse is not None else None
            self._heard.append(Heard(start, out, held / mass[..., None], level))
        return out

    def take(self) -> list[Heard]:
        """What this pass noted; the next one starts anew."""
        heard, self._heard, self._at = self._heard, [], 0
        return heard


def listening_memory(
    specs: tuple[LayerSpec, ...], config: MemoryConfig, gates: Gates
) -> tuple[SessionMemory, dict[int, Listening]]:
    """A session's memory whose full layers listen, and those memories by layer.

    Args:
        specs: the model's layers.
        config: the settings, compressive memory included.
        gates: its feature maps and decay count.
    """
    assert config.compressive is not None
    memory = SessionMemory(specs, config, config.n_init, journal=False)
    chunk = config.n_local if config.window == "segment" else config.compressive.chunk
    listening = {}
    for layer in memory.layers:
        if layer.spec.sliding is None:
            listening[layer.spec.index] = Listening(layer.spec, config.compressive, gates, chunk)
            layer.compressive = listening[layer.spec.index]
    return memory, listening


def all_open(specs: tuple[LayerSpec, ...], features: dict[int, Tensor]) -> Gates:
    """Gates that leave no layer without a memory."""
    shape = (len(specs), specs[0].heads)
    return Gates(torch.ones(shape), torch.zeros(shape), features=features)
