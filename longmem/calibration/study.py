"""Reading sample text with full attention, and looking at each layer on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.attention import ModelInfo
from longmem.calibration.listening import Listening, all_open, listening_memory
from longmem.calibration.passes import read
from longmem.calibration.report import Watch
from longmem.calibration.routers import ComparingRouter, WholeRouter
from longmem.calibration.statistics import MixStatistics
from longmem.calibration.text import contexts
from longmem.calibration.transfer import TransferLayer
from longmem.calibration.whole import whole_layer
from longmem.config import MemoryConfig
from longmem.memory import Reading, SessionMemory
from longmem.memory.layer import LayerMemory

Sums = Mapping[int, MixStatistics]


@dataclass(frozen=True, eq=False)
class Study:
    """A model under one memory setting.

    Args:
        model, info: attached, and what was measured on it.
        config: settings of the memory.
        context: tokens read before memory and attention start anew.
        watch: told of progress.
    """

    model: PreTrainedModel
    info: ModelInfo
    config: MemoryConfig
    context: int
    watch: Watch

    def compare(self, texts: Sequence[Tensor], features: dict[int, Tensor], stage: str) -> Sums:
        """Read texts, each ``[N]``, and compare window and memory with full attention, by full layer."""
        specs, total = self.info.layers, sum(map(len, texts))
        sums = {s.index: MixStatistics(s.heads) for s in specs if s.sliding is None}
        gates = all_open(specs, features)
        for start, part in contexts(texts, self.context):
            memory, listening = listening_memory(specs, self.config, gates)
            route = _Comparison(self._whole(), memory, listening, sums)
            for done, _ in read(self.model, memory, part, route):
                self.watch(stage, start + done.stop, total)
        return sums

    def feature_maps(self, texts: Sequence[Tensor], steps: int) -> dict[int, Tensor]:
        """W ``[H_kv, D, D]`` of every layer, fitted on texts, each ``[N]``, in about `steps` Adam steps;
        the identity where a sliding window of the layer's own leaves no use for it."""
        total = sum(map(len, texts))
        learning = {
            spec.index: TransferLayer(spec, self.info.max_positions, self.config, steps / total)
            for spec in self.info.layers
            if spec.sliding is None
        }
        for start, part in contexts(texts, self.context):
            layers: list[LayerMemory] = self._whole()
            for i, layer in learning.items():
                layer.begin()
                layers[i] = layer
            for done, _ in read(self.model, self._no_memory(), part, _Whole(layers)):
                self.watch("feature maps", start + done.stop, total)
        maps = {s.index: torch.eye(s.dim).repeat(s.kv_heads, 1, 1) for s in self.info.layers}
        return maps | {i: layer.weight.detach() for i, layer in learning.items()}

    def _whole(self) -> list[LayerMemory]:
        return [whole_layer(spec, self.info.max_positions) for spec in self.info.layers]

    def _no_memory(self) -> SessionMemory:
        """Only counts positions: what surprise would need never gets there."""
        plain = self.config.replace(block_boundaries="fixed", refine="none")
        return SessionMemory(self.info.layers, plain, plain.n_init, journal=False)


@dataclass(frozen=True, eq=False)
class _Whole:
    layers: list[LayerMemory]

    def __call__(self, reading: Reading) -> WholeRouter:
        return WholeRouter(self.layers, reading)


@dataclass(frozen=True, eq=False)
class _Comparison:
    whole: list[LayerMemory]
    memory: SessionMemory
    listening: Mapping[int, Listening]
    sums: Sums

    def __call__(self, reading: Reading) -> ComparingRouter:
        return ComparingRouter(self.whole, self.memory, self.listening, self.sums, reading)
