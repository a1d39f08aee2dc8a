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
    """Preallocated K/V ``[H_kv, C, D]`` of contiguous tokens; appended at the end, dropped in front.

    Each key is held raw (for the block it will become) and rotated once at its absolute position.
    `mass` ``[H_kv, C]`` float32 sums the attention each token received while in the window.
    """

    def __init__(self, spec: LayerSpec) -> None:
        self.spec = spec
        self.first = 0
        """Absolute position of the oldest token held."""
        self._lo = self._hi = 0
        self._allocate(_FIRST_CAPACITY)

    def __len__(self) -> int:
        return self._hi - self._lo

    @property
    def raw(self) -> Tensor:
        """Un-rotated keys ``[H_kv, L, D]``."""
        return self._raw[:, self._lo : self._hi]

    @property
    def rot(self) -> Tensor:
        """Rotated keys ``[H_kv, L, D]``; the raw ones where the layer does not rotate."""
        return self._rot[:, self._lo : self._hi]

    @property
    def v(self) -> Tensor:
        """Values ``[H_kv, L, D]``."""
        return self._v[:, self._lo : self._hi]

    @property
    def mass(self) -> Tensor:
        """Attention received ``[H_kv, L]`` float32."""
        return self._mass[:, self._lo : self._hi]

    @property
    def place(self) -> BufferPlace:
        """Where the tokens lie."""
        return BufferPlace(self._lo, self._raw.shape[1])

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        rotated = 0 if self._rot is self._raw else self._rot.nbytes
        return self._raw.nbytes + rotated + self._v.nbytes + self._mass.nbytes

    def append(self, k: Tensor, v: Tensor, angles: Angles | None) -> None:
        """Add T tokens: raw keys and values ``[H_kv, T, D]`` with their rotation angles."""
        n = k.shape[1]
        self._reserve(n)
        new = slice(self._hi, self._hi + n)
        self._raw[:, new] = k
        self._v[:, new] = v
        if self.spec.rotary is not None and angles is not None:
            self.spec.rotary.rotate(k, angles, out=self._rot[:, new])
        self._mass[:, new] = 0
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
        if place.capacity != self._raw.shape[1]:
            self._allocate(place.capacity)
        self._lo = self._hi = place.offset
        self.first = first
        self.append(k, v, angles)
        if mass is not None:
            self.mass.copy_(mass)

    def rewind(self, length: int, mass: Tensor) -> None:
        """Keep the oldest `length` tokens and set their attention mass ``[H_kv, length]``."""
        self._hi = self._lo + length
        self.mass.copy_(mass)

    def _reserve(self, n: int) -> None:
        """Room for n more tokens: move to the front when at most half full, else double."""
        capacity = self._raw.shape[1]
        if self._hi + n <= capacity:
            return
        live = len(self)
        old = (self.raw, self.rot, self.v, self.mass)
        if 2 * (live + n) > capacity:
            self._allocate(max(2 * capacity, 1 << (2 * (live + n) - 1).bit_length()))
        elif live > self._lo:  # source and target overlap
            old = tuple(t.clone() for t in old)  # type: ignore[assignment]  # four tensors again
        self._lo, self._hi = 0, live
        for target, source in zip((self.raw, self.rot, self.v, self.mass), old, strict=True):
            target.copy_(source)

    def _allocate(self, capacity: int) -> None:
        spec = self.spec
        shape = (spec.kv_heads, capacity, spec.dim)
        self._raw = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        self._v = torch.zeros_like(self._raw)
        self._rot = self._raw if spec.rotary is None else torch.zeros_like(self._raw)
        self._mass = torch.zeros(spec.kv_heads, capacity, dtype=torch.float32, device=spec.device)
