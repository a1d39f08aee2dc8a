"""Layers whose model gives them a sliding window of their own."""

from __future__ import annotations

from torch import Tensor

from longmem.memory.layer import LayerMark, LayerMemory, Part
from longmem.memory.reading import AttentionCall, Reading
from longmem.memory.spec import LayerSpec
from longmem.ops.working_set_attention import attend


class SlidingLayer(LayerMemory):
    """A layer with a sliding window of its own: what leaves the window is gone for it."""

    def __init__(self, spec: LayerSpec) -> None:
        assert spec.sliding is not None
        super().__init__(spec, spec.sliding)

    def _read_piece(self, part: Part, i: int, reading: Reading, call: AttentionCall) -> Tensor:
        local = self.local
        if reading.spans[i].voters:
            local.drop(max(0, len(local) - self.n_local + 1))
        local.append(part.k, part.v, part.angles)
        none = local.raw[:, :0]
        return attend(
            part.q_near, part.q_far, none, none, local.raw, local.rot, local.v,
            n_local=self.n_local, scaling=call.scaling, keep_pending=False,
            softcap=call.softcap, sinks=call.sinks,
        ).out  # fmt: skip

    def mark(self) -> LayerMark:
        """A copy of the window."""
        return self._mark_rows()

    def rewind(self, mark: LayerMark) -> None:
        self._rewind_rows(mark)
