"""The local buffer of one layer: pending tokens, then the local window, oldest first."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.memory.spec import LayerSpec
from longmem.ops.rotary import Angles

_FIRST_CAPACITY = 256


@dataclass(frozen=True)
class BufferPlace:
    """Where the live tokens lie in the buffer. Kept with snapshots, because the memory layout may
    decide the order in which a matrix product is summed, and with it the last bit of a logit."""

    offset: int
    capacity: int


class LocalBuffer:
    """Preallocated K/V of contiguous tokens; appended at the end, dropped in front.

    Each key is held rotated once at its absolute position, and raw for the block it will become.
    Keys are ``[H_kv, D, C]``, in memory as `LayerSpec.zeros_for_keys` lays them. Values lie as
    ``[H_kv, C, D]``.

    Args:
        spec: the layer.
        keeps_mass: sum the attention each token received while in the window; only the choice of
            representative keys reads that.
    """

    def __init__(self, spec: LayerSpec, keeps_mass: bool = True) -> None:
        self.spec = spec
        self.keeps_mass = keeps_mass
        self.first = 0
        """Absolute position of the oldest token held."""
        self._lo = self._hi = 0
        self._allocate(_FIRST_CAPACITY)

    def __len__(self) -> int:
        return self._hi - self._lo

    @property
    def raw(self) -> Tensor:
        """Un-rotated keys ``[H_kv, L, D]``, a view."""
        return self.raw_columns(0, len(self)).mT

    @property
    def rot(self) -> Tensor:
        """Rotated keys ``[H_kv, L, D]``, a view; the raw ones where the layer does not rotate."""
        return self.rot_columns(0, len(self)).mT

    @property
    def v(self) -> Tensor:
        """Values ``[H_kv, L, D]``, a view."""
        return self._v.narrow(1, self._lo, self._hi - self._lo)

    @property
    def mass(self) -> Tensor:
        """Attention received ``[H_kv, L]`` float32; ``[H_kv, 0]`` where it is not kept."""
        return self._mass[:, self._lo : self._hi]

    @property
    def place(self) -> BufferPlace:
        """Where the tokens lie."""
        return BufferPlace(self._lo, self._v.shape[1])

    @property
    def addresses(self) -> tuple[int, int, int, int]:
        """Where row 0 of raw keys, rotated keys, values and attention sums lies (0: none are kept). They
        change when the buffer grows, in `reserve` or `load`."""
        return self._addresses

    @property
    def rows(self) -> tuple[int, int, int]:
        """The first of the rows that hold tokens, the first behind them, and how many there are."""
        return self._lo, self._hi, self._v.shape[1]

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self._keys.nbytes + self._v.nbytes + self._mass.nbytes

    def rot_columns(self, start: int, stop: int) -> Tensor:
        """Rotated keys ``[H_kv, D, stop - start]`` of these of the L tokens, as they lie."""
        return self._rot.narrow(2, self._lo + start, stop - start)

    def raw_columns(self, start: int, stop: int) -> Tensor:
        """Un-rotated keys ``[H_kv, D, stop - start]`` of these of the L tokens, as they lie."""
        return self._raw.narrow(2, self._lo + start, stop - start)

    def append(self, k: Tensor, v: Tensor, angles: Angles | None) -> None:
        """Add T tokens: raw keys and values ``[H_kv, T, D]`` with their rotation angles."""
        rotary = self.spec.rotary
        turned = k if rotary is None or angles is None else rotary.rotate(k, angles)
        self.extend(k, turned, v)

    def extend(self, k: Tensor, k_rot: Tensor, v: Tensor) -> None:
        """Add T tokens: raw keys, rotated keys and values ``[H_kv, T, D]``."""
        n = k.shape[1]
        self.reserve(n)
        self._raw.narrow(2, self._hi, n).copy_(k.mT)
        if self._rot is not self._raw:
            self._rot.narrow(2, self._hi, n).copy_(k_rot.mT)
        self._v.narrow(1, self._hi, n).copy_(v)
        if self.keeps_mass:
            self._mass.narrow(1, self._hi, n).zero_()
        self._hi += n

    def append_one(self, keys: Tensor, v: Tensor) -> None:
        """Add one token.

        Args:
            keys: ``[P, H_kv, D]`` its key, rotated and raw (P = 2), or raw where the layer does not
                rotate (P = 1).
            v: ``[H_kv, 1, D]`` its value.
        """
        self.reserve(1)
        at = self._hi
        self._keys.select(3, at).copy_(keys)
        self._v.narrow(1, at, 1).copy_(v)
        if self.keeps_mass:
            self._mass.select(1, at).zero_()
        self._hi += 1

    def grown(self, n: int) -> None:
        """The n rows behind the newest token hold tokens now: a kernel wrote them."""
        self._hi += n

    def drop(self, n: int) -> None:
        """Forget the n oldest tokens."""
        self._lo += n
        self.first += n

    def load(
        self,
        k: Tensor,
        v: Tensor,
        mass: Tensor | None,
        angles: Angles | None,
        first: int,
        place: BufferPlace,
    ) -> None:
        """Hold exactly these tokens, `first` being the oldest, at `place`."""
        if place.capacity != self._v.shape[1]:
            self._allocate(place.capacity)
        self._lo = self._hi = place.offset
        self.first = first
        self.append(k, v, angles)
        self._set_mass(mass)

    def rewind(self, length: int, mass: Tensor) -> None:
        """Keep the oldest `length` tokens and set their attention mass ``[H_kv, length]``."""
        self._hi = self._lo + length
        self._set_mass(mass)

    def _set_mass(self, mass: Tensor | None) -> None:
        if mass is not None and self.keeps_mass:
            self.mass.copy_(mass)

    def reserve(self, n: int) -> None:
        """Room for n more tokens: those held move to the front where that leaves enough, or the buffer
        grows."""
        capacity = self._v.shape[1]
        if self._hi + n <= capacity:
            return
        live, lo = len(self), self._lo
        old = (self._keys, self._v, self._mass)
        if self._spare * (live + n) > capacity:
            self._allocate(self._enough(live + n))
        _move(old[0], self._keys, 3, lo, live)
        _move(old[1], self._v, 1, lo, live)
        if self.keeps_mass:
            _move(old[2], self._mass, 1, lo, live)
        self._lo, self._hi = 0, live

    @property
    def _spare(self) -> float:
        """How often the live tokens must fit for them to be moved to the front. A GPU moves them in no
        time, and has less memory."""
        return 1.125 if self.spec.kernels else 2

    def _enough(self, tokens: int) -> int:
        """Capacity for so many live tokens, of which they are moved rarely."""
        if self.spec.kernels:
            return -(-tokens * 5 // 4 // _FIRST_CAPACITY) * _FIRST_CAPACITY
        return max(2 * self._v.shape[1], 1 << (2 * tokens - 1).bit_length())

    def _allocate(self, capacity: int) -> None:
        spec = self.spec
        planes = 1 if spec.rotary is None else 2
        self._v = torch.zeros(
            spec.kv_heads, capacity, spec.dim, dtype=spec.dtype, device=spec.device
        )
        self._keys = spec.zeros_for_keys(planes, tokens=capacity)
        self._raw = self._keys[-1]
        self._rot = self._raw if spec.rotary is None else self._keys[0]
        held = capacity if self.keeps_mass else 0
        self._mass = torch.zeros(spec.kv_heads, held, dtype=torch.float32, device=spec.device)
        raw, rot, v = (x.data_ptr() for x in (self._raw, self._rot, self._v))
        self._addresses = (raw, rot, v, self._mass.data_ptr() if held else 0)


def _move(source: Tensor, target: Tensor, dim: int, start: int, n: int) -> None:
    """Copy n entries of `dim` from `start` on to the front of `target`, which may be `source`: at
    most `start` at once, so that none is written over before it is read, and no buffer is needed."""
    at_once = max(start if source is target else n, 1)
    for at in range(0, n, at_once):
        size = min(at_once, n - at)
        target.narrow(dim, at, size).copy_(source.narrow(dim, start + at, size))
