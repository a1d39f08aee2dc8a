"""Attention to everything in a context: what window and memory together should come close to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longmem.memory import AttentionCall, LayerSpec, Reading
from longmem.memory.layer import LayerMark, LayerMemory, Part
from longmem.memory.sliding_layer import SlidingLayer
from longmem.ops.working_set_attention import attend


class WholeLayer(LayerMemory):
    """Full attention at true distances, as the model was trained; keys beyond the trained positions
    are met at the longest trained distance.

    Args:
        spec: the layer.
        max_positions: trained positions.
    """

    def __init__(self, spec: LayerSpec, max_positions: int) -> None:
        super().__init__(spec, max_positions - 1)

    def _begin(self, whole: Part, reading: Reading) -> Sequence[int]:
        return [reading.tokens]

    def _read_piece(self, part: Part, i: int, reading: Reading, call: AttentionCall) -> Tensor:
        local = self.local
        local.extend(part.k, part.k_rot, part.v)
        none = local.raw[:, :0]
        return attend(
            part.q_near, part.q_far, none, none, local.raw, local.rot, local.v,
            n_local=self.n_local, scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
        ).out  # fmt: skip

    def mark(self) -> LayerMark:
        """A copy of the context."""
        return self._mark_rows()

    def rewind(self, mark: LayerMark) -> None:
        self._rewind_rows(mark)


def whole_layer(spec: LayerSpec, max_positions: int) -> LayerMemory:
    """A layer that attends as far as its model lets it."""
    return SlidingLayer(spec) if spec.sliding else WholeLayer(spec, max_positions)
