"""The sessions of a pass that read a single token each: one decode step of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longmem.memory.layer import LayerMemory
from longmem.memory.reading import AttentionCall, Reading
from longmem.memory.session_memory import SessionMemory
from longmem.ops.rotary import Angles, Rotary
from longmem.ops.scratch import Scratch
from longmem.ops.step_attention import Stepped, attend_steps

Failed = Callable[[int, Exception], None]
"""Told which of the sessions failed, and why."""


class _Turned(NamedTuple):
    """Queries ``[S, H, D]`` rotated at their positions and at n_local; per session the latter
    ``[H, 1, D]`` and the key ``[P, H_kv, D]`` as `LocalBuffer.append_one` takes it."""

    near: Tensor
    far: Tensor
    each_far: Sequence[Tensor]
    each_key: Sequence[Tensor]

    @classmethod
    def of(cls, near: Tensor, far: Tensor, keys: Tensor) -> _Turned:
        return cls(near, far, far.unsqueeze(2).unbind(), keys.unbind())


class _Room(NamedTuple):
    """What `Steps` rotates in: queries and keys ``[S, 1, H + H_kv, D]`` side by side with views of
    each, their rotations ``[S, 2, H + H_kv, D]``, memory to compute in, and where raw keys go."""

    q: Tensor
    k: Tensor
    both: Tensor
    out: Tensor
    spare: Tensor
    raw: Tensor
    turned: _Turned


class Steps:
    """Single tokens of several sessions, layer by layer.

    What is the same for all sessions, rotations and softmax, is done for all at once; each session's
    tokens are appended, and its blocks looked up, by itself. Between look-ups nothing is allocated
    here, and nothing waits for the device.

    Args:
        parts: per session its memory and the one token it reads.
        scratch: what the steps of an engine compute in.
        failed: told of a session whose part fails; the others go on. None: errors are raised.
    """

    def __init__(
        self,
        parts: Sequence[tuple[SessionMemory, Reading]],
        scratch: Scratch,
        failed: Failed | None = None,
    ) -> None:
        self._parts, self._scratch, self._failed = parts, scratch, failed
        self._live = list(range(len(parts)))
        self._tables: dict[tuple[Rotary, int, torch.dtype], Angles] = {}
        self._rooms: dict[tuple[int, int, int], _Room] = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Attention of one layer.

        Args:
            layer: its number.
            q: ``[S, H, D]`` un-rotated queries of the S sessions' tokens.
            k, v: ``[S, H_kv, D]`` their keys and values.
            call: the layer's attention settings.

        Returns:
            ``[S, H, D]``, zeros for sessions that failed. The next layer may overwrite it.
        """
        layers = [memory.layers[layer] for memory, _ in self._parts]
        kind = layers[0]
        turned = self._turn(kind, q, k)
        near, far = turned.near, turned.far
        ks, vs = k.unsqueeze(2).unbind(), v.unsqueeze(2).unbind()
        for s in self._live[:]:
            own = turned.each_far[s], turned.each_key[s], ks[s], vs[s]
            self._guarded(s, self._take_in, layer, *own)
        live = self._live
        if not live:
            return torch.zeros_like(q)
        if len(live) < len(layers):
            near, far = near[live], far[live]
        done = attend_steps(
            near, far, [layers[s].step_keys() for s in live], self._scratch,
            scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
            mass_of=kind.mass_of, want_lse=kind.want_lse,
        )  # fmt: skip
        if kind.mass_of is not None or any(layers[s].compressive for s in live):
            self._end([layers[s] for s in live], q if len(live) == len(layers) else q[live], done)
        if len(live) < len(layers):
            return torch.zeros_like(q).index_copy_(0, torch.tensor(live, device=q.device), done.out)
        return done.out

    def _end(self, layers: Sequence[LayerMemory], q: Tensor, done: Stepped) -> None:
        """Let each layer use its row of the result."""
        for row, own in enumerate(layers):
            out = done.out[row, :, None]
            mass = None if done.mass is None else done.mass[row]
            lse = None if done.lse is None else done.lse[row, :, None]
            mixed = own.end_step(out, q[row, :, None], mass, lse)
            if mixed is not out:
                out.copy_(mixed)

    def _take_in(
        self, s: int, layer: int, q_far: Tensor, keys: Tensor, k: Tensor, v: Tensor
    ) -> None:
        """Let session s look up, if it is due, and hold the new token.

        Args:
            s: the session.
            layer: the layer.
            q_far: ``[H, 1, D]``.
            keys: ``[P, H_kv, D]``, see `LocalBuffer.append_one`.
            k, v: ``[H_kv, 1, D]``.
        """
        memory, reading = self._parts[s]
        memory.note(layer, k, v)
        own = memory.layers[layer]
        own.begin_step(q_far, reading)
        own.local.append_one(keys, v)

    def _guarded(self, s: int, do: Callable[..., None], *args: object) -> None:
        if self._failed is None:
            do(s, *args)
            return
        try:
            do(s, *args)
        except Exception as error:
            self._live.remove(s)
            self._failed(s, error)

    def _turn(self, like: LayerMemory, q: Tensor, k: Tensor) -> _Turned:
        """Queries and keys as the step needs them, in scratch memory."""
        rotary = like.spec.rotary
        if rotary is None:
            return _Turned.of(q, q, k[:, None])
        angles = self._angles(like, rotary)
        rows = (q.shape[1], k.shape[1], angles[0].shape[-1])
        room = self._rooms.get(rows)
        if room is None:
            room = self._rooms[rows] = self._room(q, *rows)
        room.q.copy_(q)
        room.k.copy_(k)
        rotary.rotate(room.both, angles, out=room.out, spare=room.spare)
        room.raw.copy_(k)  # met by far queries, it stays un-rotated
        return room.turned

    def _room(self, q: Tensor, heads: int, kv_heads: int, half: int) -> _Room:
        """Scratch memory for `_turn`, and views of it, the same for all layers of one shape."""
        sessions, _, dim = q.shape
        rows = heads + kv_heads
        both = self._take("both", (sessions, 1, rows, dim), q)
        out = self._take("turned", (sessions, 2, rows, dim), q)
        spare = self._take("spare", (sessions, 2, rows, half), q)
        turned = _Turned.of(out[:, 0, :heads], out[:, 1, :heads], out[:, :, heads:])
        return _Room(
            both[:, 0, :heads], both[:, 0, heads:], both, out, spare, out[:, 1, heads:], turned
        )

    def _angles(self, like: LayerMemory, rotary: Rotary) -> Angles:
        """cos and sin ``[S, 2, 1, R / 2]`` of the tokens' positions and of n_local, made once."""
        key = (rotary, like.n_local, like.spec.dtype)
        if key in self._tables:
            return self._tables[key]
        assert like.far_angles is not None
        sessions, half = len(self._parts), rotary.inv_freq.shape[0]
        angle = self._take("angle", (sessions, half), rotary.inv_freq)
        torch.mul(self._positions(rotary.inv_freq), rotary.inv_freq, out=angle)
        value = self._take("value", (sessions, half), angle)
        tables = []
        for of, far in zip((torch.cos, torch.sin), like.far_angles, strict=True):
            name = f"{of.__name__} {len(self._tables)}"
            table = self._take(name, (sessions, 2, 1, half), far)
            table[:, 0, 0].copy_(of(angle, out=value))
            table[:, 1, 0].copy_(far)
            tables.append(table)
        found = self._tables[key] = (tables[0], tables[1])
        return found

    def _positions(self, like: Tensor) -> Tensor:
        """``[S, 1]`` float64 absolute positions."""
        shape = (len(self._parts), 1)
        here = self._scratch.take("positions", shape, torch.float64, torch.device("cpu"))
        for place, (_, reading) in zip(here.unbind(), self._parts, strict=True):
            place.fill_(reading.start)
        return here if like.device == here.device else self._take("at", shape, like).copy_(here)

    def _take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return self._scratch.take(name, shape, like.dtype, like.device)
