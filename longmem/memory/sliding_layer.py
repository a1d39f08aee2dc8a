"""Layers whose model gives them a sliding window of their own."""

from __future__ import annotations

from torch import Tensor

from longmem.memory.compressive import CompressiveMemory
from longmem.memory.layer import LayerMark, LayerMemory, Part
from longmem.memory.reading import AttentionCall, Reading
from longmem.memory.spec import LayerSpec
from longmem.ops.working_set_attention import attend


class SlidingLayer(LayerMemory):
    """A layer with a sliding window of its own: what leaves the window is gone for it, but for what its
    compressive memory holds.

    Args:
        spec: the layer.
        compressive: its memory; None while its gates are closed.
    """

    takes_steps = True

    def __init__(self, spec: LayerSpec, compressive: CompressiveMemory | None = None) -> None:
        assert spec.sliding is not None
        super().__init__(spec, spec.sliding)
        self.compressive = compressive
        self.want_lse = compressive is not None

    def begin_step(self, q_far: Tensor, reading: Reading) -> None:
        """What is beyond the window may go."""
        if reading.spans[0].voters:
            self._leave(max(0, len(self.local) - self.n_local + 1))

    def _read_piece(self, part: Part, i: int, reading: Reading, call: AttentionCall) -> Tensor:
        local = self.local
        if reading.spans[i].voters:
            self._leave(max(0, len(local) - self.n_local + 1))
        local.extend(part.k, part.k_rot, part.v)
        none = local.raw[:, :0]
        attended = attend(
            part.q_near, part.q_far, none, none, local.raw, local.rot, local.v,
            n_local=self.n_local, scaling=call.scaling, keep_pending=False,
            softcap=call.softcap, sinks=call.sinks, mass_of=None, want_lse=self.want_lse,
        )  # fmt: skip
        if self.compressive is None:
            return attended.out
        return self.compressive.mix(attended.out, part.q, attended.lse)

    def mark(self) -> LayerMark:
        """A copy of the window and of the compressive memory."""
        return self._mark_rows()

    def rewind(self, mark: LayerMark) -> None:
        self._rewind_rows(mark)

    def _leave(self, n: int) -> None:
        """The n oldest tokens leave the window."""
        if self.compressive is not None:
            self.compressive.fold(self.local.raw[:, :n], self.local.v[:, :n])
        self.local.drop(n)
