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
from longmem.ops.step_attention import StepKeys
from longmem.ops.working_set_attention import MassOf


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
        k, k_rot, v: ``[H_kv, T, D]`` un-rotated keys, the same rotated at their own positions, values.
    """

    q: Tensor
    q_near: Tensor
    q_far: Tensor
    k: Tensor
    k_rot: Tensor
    v: Tensor

    def tokens(self, start: int, stop: int) -> Part:
        """The tokens start .. stop of this part."""
        at = slice(start, stop)
        return Part(
            self.q[:, at],
            self.q_near[:, at],
            self.q_far[:, at],
            self.k[:, at],
            self.k_rot[:, at],
            self.v[:, at],
        )


class LayerMemory(ABC):
    """K/V of one layer; subclasses differ in what they keep beyond the window."""

    compressive: CompressiveMemory | None = None

    mass_of: MassOf | None = None
    """What the layer wants summed of each step's attention; None: nothing."""
    want_lse = False
    """Whether it reads the log of the softmax's denominator."""
    takes_steps = False
    """Whether single tokens go through `begin_step` .. `end_step` (see `longmem.memory.steps`)."""

    def __init__(self, spec: LayerSpec, n_local: int, keeps_mass: bool = False) -> None:
        self.spec = spec
        self.n_local = n_local
        self.local = LocalBuffer(spec, keeps_mass)
        self.far_angles: Angles | None = None
        """Of position n_local; None where the layer does not rotate."""
        if spec.rotary is not None:
            at = torch.full((1,), n_local, device=spec.rotary.inv_freq.device)
            self.far_angles = spec.rotary.angles(at, spec.dtype)

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
        rotary = self.spec.rotary
        angles = reading.angles(rotary, q.dtype) if rotary else None
        k_rot = k if angles is None or rotary is None else rotary.rotate(k, angles)
        whole = Part(q, *self._rotate(q, angles), k, k_rot, v)
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

    def begin_step(self, q_far: Tensor, reading: Reading) -> None:  # noqa: B027  # a hook, as `_end`
        """A single token comes: make room, look up if that is due.

        Args:
            q_far: ``[H, 1, D]`` its query, rotated at n_local.
            reading: a pass of one token.
        """

    def step_keys(self) -> StepKeys:
        """What the token that was appended last attends to."""
        local, window = self.local, min(len(self.local), self.n_local)
        beyond = len(local) - window
        near = local.rot_columns(beyond, len(local))
        none, no_values = near[:, :, :0], local.v[:, :0]
        return StepKeys(none, no_values, none, near, local.v[:, beyond:])

    def end_step(self, out: Tensor, q: Tensor, mass: Tensor | None, lse: Tensor | None) -> Tensor:
        """What the layer makes of the step's attention.

        Args:
            out: ``[H, 1, D]`` it, which may be overwritten by the next layer's.
            q: ``[H, 1, D]`` the un-rotated query.
            mass: ``[H_kv, N]`` sums of the kind `mass_of`, of the N keys in the order of `StepKeys`.
            lse: ``[H, 1]``, see `want_lse`.

        Returns:
            ``[H, 1, D]``.
        """
        return out if self.compressive is None else self.compressive.mix(out, q, lse)

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
        if rotary is None or angles is None or self.far_angles is None:
            return q, q
        return rotary.rotate(q, angles), rotary.rotate(q, self.far_angles)
