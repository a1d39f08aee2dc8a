"""The memory of one session in one attention layer: what all kinds of layers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.memory.compressive import CompressiveMark, CompressiveMemory
from longmem.memory.reading import AttentionCall, Reading
from longmem.memory.spec import LayerSpec
from longmem.memory.window import BufferPlace, LocalBuffer
from longmem.ops.rotary import Angles


@dataclass(frozen=True, eq=False)
class LayerMark:
    """What `rewind` needs to bring a layer back.

    Args:
        first, length, place: which tokens its buffer held, and where.
        saved: what reading on destroys: the attention sums ``[H_kv, L]`` of a full layer, the rows
            ``[2, H_kv, L, D]`` of the others.
        closed: blocks closed (-1: not even the initial tokens had left the window).
        compressive: the compressive memory; None where the layer has none.
    """

    first: int
    length: int
    place: BufferPlace
    saved: Tensor
    closed: int
    compressive: CompressiveMark | None = None


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive tokens of a pass as one layer gets them.

    Args:
        q: ``[H, T, D]`` un-rotated queries.
        q_near, q_far: ``[H, T, D]`` the same, rotated at their own positions and at n_local.
        k, v: ``[H_kv, T, D]`` un-rotated keys, values.
        angles: of the tokens' positions; None where the layer does not rotate.
    """

    q: Tensor
    q_near: Tensor
    q_far: Tensor
    k: Tensor
    v: Tensor
    angles: Angles | None

    def tokens(self, start: int, stop: int) -> Part:
        """The tokens start .. stop of this part."""
        at = slice(start, stop)
        return Part(
            self.q[:, at],
            self.q_near[:, at],
            self.q_far[:, at],
            self.k[:, at],
            self.v[:, at],
            None if self.angles is None else (self.angles[0][at], self.angles[1][at]),
        )


class LayerMemory(ABC):
    """K/V of one layer; subclasses differ in what they keep beyond the window."""

    compressive: CompressiveMemory | None = None

    def __init__(self, spec: LayerSpec, n_local: int) -> None:
        self.spec = spec
        self.n_local = n_local
        self.local = LocalBuffer(spec)
        self._far: Angles | None = None
        if spec.rotary is not None:
            at = torch.tensor([n_local], device=spec.rotary.inv_freq.device)
            self._far = spec.rotary.angles(at, spec.dtype)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, reading: Reading, call: AttentionCall
    ) -> Tensor:
        """Take in T tokens and let them attend.

        Args:
            q: ``[H, T, D]`` un-rotated queries.
            k, v: ``[H_kv, T, D]`` un-rotated keys, values.
            reading: positions and look-up spans of the T tokens.
            call: the layer's attention settings.

        Returns:
            Attention output ``[H, T, D]``.
        """
        angles = reading.angles(self.spec.rotary, q.dtype) if self.spec.rotary else None
        whole = Part(q, *self._rotate(q, angles), k, v, angles)
        pieces = self._begin(whole, reading)
        if len(pieces) == 1:
            out = self._read_piece(whole, 0, reading, call)
        else:
            out, start = torch.empty_like(q), 0
            for i, n in enumerate(pieces):
                part = whole.tokens(start, start + n)
                out[:, start : start + n] = self._read_piece(part, i, reading, call)
                start += n
        self._end()
        return out

    @property
    def folded(self) -> tuple[int, int]:
        """Absolute positions (start, stop) of the tokens the compressive memory was given."""
        return 0, self.local.first

    def _begin(self, whole: Part, reading: Reading) -> Sequence[int]:
        """A pass begins; gives the lengths of the pieces it is read in: its look-up spans."""
        return [span.tokens for span in reading.spans]

    def _end(self) -> None:  # noqa: B027  # most kinds of layers have nothing to let go of
        """The pass is through."""

    @abstractmethod
    def _read_piece(self, part: Part, i: int, reading: Reading, call: AttentionCall) -> Tensor:
        """Take in the tokens of piece i of `reading`; output ``[H, T, D]``."""

    @abstractmethod
    def mark(self) -> LayerMark:
        """Where the layer stands now."""

    @abstractmethod
    def rewind(self, mark: LayerMark) -> None:
        """Back to `mark`, which must not lie behind an earlier `rewind`."""

    def load(
        self, k: Tensor, v: Tensor, mass: Tensor | None, first: int, place: BufferPlace
    ) -> None:
        """Let the local buffer hold exactly these raw keys and values ``[H_kv, L, D]`` of the
        tokens from position `first` on, with their attention mass ``[H_kv, L]``."""
        rotary, angles = self.spec.rotary, None
        if rotary is not None:
            at = torch.arange(first, first + k.shape[1], device=rotary.inv_freq.device)
            angles = rotary.angles(at, self.spec.dtype)
        self.local.load(k, v, mass, angles, first, place)

    def _mark_rows(self) -> LayerMark:
        """A mark with a copy of the buffer: dropped tokens could not be had back."""
        local = self.local
        rows = torch.stack((local.raw, local.v))
        return LayerMark(local.first, len(local), local.place, rows, 0, self._mark_compressive())

    def _rewind_rows(self, mark: LayerMark) -> None:
        k, v = mark.saved
        self.load(k, v, None, mark.first, mark.place)
        self._rewind_compressive(mark)

    def _mark_compressive(self) -> CompressiveMark | None:
        return self.compressive.mark() if self.compressive else None

    def _rewind_compressive(self, mark: LayerMark) -> None:
        if self.compressive and mark.compressive:
            self.compressive.rewind(mark.compressive)

    def _rotate(self, q: Tensor, angles: Angles | None) -> tuple[Tensor, Tensor]:
        rotary = self.spec.rotary
        if rotary is None or angles is None or self._far is None:
            return q, q
        return rotary.rotate(q, angles), rotary.rotate(q, self._far)
