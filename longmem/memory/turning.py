"""The rotations of a decode step: of all sessions at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longmem.memory.layer import LayerMemory
from longmem.ops.rotary import Angles, Rotary
from longmem.ops.scratch import Scratch


class Turned(NamedTuple):
    """Queries ``[S, H, D]`` rotated at their positions and at n_local; per session the latter
    ``[H, 1, D]`` and the key ``[P, H_kv, D]`` as `LocalBuffer.append_one` takes it."""

    near: Tensor
    far: Tensor
    each_far: Sequence[Tensor]
    each_key: Sequence[Tensor]

    @classmethod
    def of(cls, near: Tensor, far: Tensor, keys: Tensor) -> Turned:
        return cls(near, far, far.unsqueeze(2).unbind(), keys.unbind())


class _Room(NamedTuple):
    """What a step rotates in: queries and keys ``[S, 1, H + H_kv, D]`` side by side with views of
    each, their rotations ``[S, 2, H + H_kv, D]``, memory to compute in, and where raw keys go."""

    q: Tensor
    k: Tensor
    both: Tensor
    out: Tensor
    spare: Tensor
    raw: Tensor
    turned: Turned


class Turning:
    """Rotates queries and keys of one token of each of S sessions; nothing is allocated outside
    `scratch`, and nothing waits for the device.

    Args:
        positions: of the tokens, absolute.
        scratch: what it computes in.
    """

    def __init__(self, positions: Sequence[int], scratch: Scratch) -> None:
        self._positions, self._scratch = positions, scratch
        self._tables: dict[tuple[Rotary, int, torch.dtype], Angles] = {}
        self._rooms: dict[tuple[int, int, int, torch.device], _Room] = {}

    def turn(self, like: LayerMemory, q: Tensor, k: Tensor) -> Turned:
        """Queries ``[S, H, D]`` and keys ``[S, H_kv, D]`` as the step needs them, in scratch memory.

        Args:
            like: the layer of any of the sessions.
            q, k: un-rotated.
        """
        rotary = like.spec.rotary
        angles = self.angles(like)
        if rotary is None or angles is None:
            return Turned.of(q, q, k[:, None])
        rows = (q.shape[1], k.shape[1], angles[0].shape[-1])
        room = self._rooms.get((*rows, q.device))
        if room is None:
            room = self._rooms[*rows, q.device] = self._room(q, *rows)
        room.q.copy_(q)
        room.k.copy_(k)
        rotary.rotate(room.both, angles, out=room.out, spare=room.spare)
        room.raw.copy_(k)  # met by far queries, it stays un-rotated
        return room.turned

    def angles(self, like: LayerMemory) -> Angles | None:
        """cos and sin ``[S, 2, 1, R / 2]`` of the tokens' positions and of n_local, made once; None
        where the layer does not rotate."""
        rotary = like.spec.rotary
        if rotary is None or like.far_angles is None:
            return None
        key = (rotary, like.n_local, like.spec.dtype)
        if key not in self._tables:
            self._tables[key] = self._made(rotary, like.far_angles)
        return self._tables[key]

    def _made(self, rotary: Rotary, far_angles: Angles) -> Angles:
        sessions, half = len(self._positions), rotary.inv_freq.shape[0]
        angle = self._take("angle", (sessions, half), rotary.inv_freq)
        torch.mul(self._at(rotary.inv_freq), rotary.inv_freq, out=angle)
        value = self._take("value", (sessions, half), angle)
        tables = []
        for of, far in zip((torch.cos, torch.sin), far_angles, strict=True):
            name = f"{of.__name__} {len(self._tables)}"
            table = self._take(name, (sessions, 2, 1, half), far)
            table[:, 0, 0].copy_(of(angle, out=value))
            table[:, 1, 0].copy_(far)
            tables.append(table)
        return tables[0], tables[1]

    def _room(self, q: Tensor, heads: int, kv_heads: int, half: int) -> _Room:
        """Scratch memory for `turn`, and views of it, the same for all layers of one shape."""
        sessions, _, dim = q.shape
        rows = heads + kv_heads
        both = self._take("both", (sessions, 1, rows, dim), q)
        out = self._take("turned", (sessions, 2, rows, dim), q)
        spare = self._take("spare", (sessions, 2, rows, half), q)
        turned = Turned.of(out[:, 0, :heads], out[:, 1, :heads], out[:, :, heads:])
        return _Room(
            both[:, 0, :heads], both[:, 0, heads:], both, out, spare, out[:, 1, heads:], turned
        )

    def _at(self, like: Tensor) -> Tensor:
        """``[S, 1]`` float64 absolute positions."""
        shape = (len(self._positions), 1)
        here = self._scratch.take("positions", shape, torch.float64, torch.device("cpu"))
        for place, position in zip(here.unbind(), self._positions, strict=True):
            place.fill_(position)
        return here if like.device == here.device else self._scratch.upload("at", here, like.device)

    def _take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self._scratch.take(name, shape, like.dtype, like.device)
