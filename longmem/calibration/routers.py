"""Where attention goes while a model is calibrated: layer after layer, full attention goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from longmem.calibration.listening import Listening
from longmem.calibration.statistics import MixStatistics
from longmem.memory import AttentionCall, Reading, SessionMemory
from longmem.memory.layer import LayerMemory


class WholeRouter:
    """Full attention in every layer.

    Args:
        layers: one per layer of the model.
        reading: the pass.
    """

    def __init__(self, layers: Sequence[LayerMemory], reading: Reading) -> None:
        self._layers, self._reading = layers, reading

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """As `longmem.attention.Router.attend`."""
        out = self._layers[layer].read(q[0], k[0], v[0], self._reading, call)
        return out.transpose(0, 1)[None]


class ComparingRouter(WholeRouter):
    """Full attention, beside which each layer's memory sees the same queries and keys.

    The next layer is given full attention's output, so that every layer is measured on what it gets
    in a model that misses nothing, and errors do not pile up.

    Args:
        layers: full attention, one per layer.
        memory: window and blocks of the engine.
        listening: the compressive memories in it, by layer.
        sums: where the comparison is added up, by layer.
        reading: the pass.
    """

    def __init__(
        self,
        layers: Sequence[LayerMemory],
        memory: SessionMemory,
        listening: Mapping[int, Listening],
        sums: Mapping[int, MixStatistics],
        reading: Reading,
    ) -> None:
        super().__init__(layers, reading)
        self._memory, self._listening, self._sums = memory, listening, sums

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """As `longmem.attention.Router.attend`."""
        out = super().attend(layer, q, k, v, call)
        if layer in self._listening:
            self._memory.read_layer(layer, q[0], k[0], v[0], self._reading, call)
            full = out[0].transpose(0, 1)
            for heard in self._listening[layer].take():
                part = slice(heard.start, heard.start + heard.local.shape[1])
                self._sums[layer].add(full[:, part], heard)
        return out
