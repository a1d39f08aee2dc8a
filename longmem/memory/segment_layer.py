"""Layers whose window is a segment of an absolute grid (Infini-attention)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from longmem.memory.compressive import CompressiveMemory
from longmem.memory.layer import LayerMark, LayerMemory, Part
from longmem.memory.reading import AttentionCall, Reading
from longmem.memory.spec import LayerSpec
from longmem.ops.working_set_attention import attend


class SegmentLayer(LayerMemory):
    """Attention inside the token's own segment of n_local tokens; what lies before it is only in the
    compressive memory (Infini-attention, arXiv 2404.07143, section 3).

    Args:
        spec: the layer.
        n_local: tokens of a segment.
        compressive: its memory; None while its gates are closed.
    """

    takes_steps = True

    def __init__(
        self, spec: LayerSpec, n_local: int, compressive: CompressiveMemory | None
    ) -> None:
        super().__init__(spec, n_local)
        self.compressive = compressive
        self.want_lse = compressive is not None

    def begin_step(self, q_far: Tensor, reading: Reading) -> None:
        """A full segment makes room for the next one."""
        if len(self.local) == self.n_local:
            self._next_segment()

    def _begin(self, whole: Part, reading: Reading) -> Sequence[int]:
        """Pieces end where segments do; look-up spans do not matter without blocks."""
        left, room, pieces = reading.tokens, self.n_local - len(self.local), []
        while left:
            pieces.append(min(left, room or self.n_local))
            left, room = left - pieces[-1], self.n_local
        return pieces

    def _read_piece(self, part: Part, i: int, reading: Reading, call: AttentionCall) -> Tensor:
        local = self.local
        if len(local) == self.n_local:
            self._next_segment()
        local.extend(part.k, part.k_rot, part.v)
        none = local.raw[:, :0]
        attended = attend(
            part.q_near, part.q_far, none, none, local.raw, local.rot, local.v,
            n_local=self.n_local, scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
            mass_of=None, want_lse=self.want_lse,
        )  # fmt: skip
        if self.compressive is None:
            return attended.out
        return self.compressive.mix(attended.out, part.q, attended.lse)

    def mark(self) -> LayerMark:
        """A copy of the segment and of the compressive memory."""
        return self._mark_rows()

    def rewind(self, mark: LayerMark) -> None:
        self._rewind_rows(mark)

    def _next_segment(self) -> None:
        """The segment is over: fold it, and start the next one empty."""
        if self.compressive is not None:
            self.compressive.fold(self.local.raw, self.local.v)
        self.local.drop(len(self.local))
