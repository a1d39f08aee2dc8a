"""The sessions of a pass that read a single token each: one decode step of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from longmem.memory.kernel_steps import attend_by_kernels
from longmem.memory.layer import LayerMemory
from longmem.memory.reading import AttentionCall, Reading
from longmem.memory.session_memory import SessionMemory
from longmem.memory.turning import Turning
from longmem.ops.scratch import Scratch
from longmem.ops.step_attention import Stepped, attend_steps

Failed = Callable[[int, Exception], None]
"""Told which of the sessions failed, and why."""


class Steps:
    """Single tokens of several sessions, layer by layer.

    What is the same for all sessions, rotations and softmax, is done for all at once; each session's
    tokens are appended, and its blocks looked up, by itself. Between look-ups nothing is allocated
    here, and nothing waits for the device. Where kernels serve, they append the tokens, too.

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
        self._turning = Turning([reading.start for _, reading in parts], scratch)

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
        by_kernels = layers[0].spec.kernels
        attend = self._attend_by_kernels if by_kernels else self._attend_by_torch
        done = attend(layer, layers, q, k, v, call)
        live = self._live
        if done is None:
            return torch.zeros_like(q)
        if done.mass is not None or any(layers[s].compressive for s in live):
            self._end([layers[s] for s in live], self._of_live(q), done)
        if len(live) < len(layers):
            return torch.zeros_like(q).index_copy_(0, torch.tensor(live, device=q.device), done.out)
        return done.out

    def _attend_by_torch(
        self,
        layer: int,
        layers: Sequence[LayerMemory],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: AttentionCall,
    ) -> Stepped | None:
        """Rows of the sessions that did not fail; None if all did."""
        kind = layers[0]
        turned = self._turning.turn(kind, q, k)
        ks, vs = k.unsqueeze(2).unbind(), v.unsqueeze(2).unbind()
        for s in self._live[:]:
            own = turned.each_far[s], turned.each_key[s], ks[s], vs[s]
            self._guarded(s, self._take_in, layer, *own)
        if not self._live:
            return None
        return attend_steps(
            self._of_live(turned.near), self._of_live(turned.far),
            [layers[s].step_keys() for s in self._live], self._scratch,
            scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
            mass_of=kind.mass_of, want_lse=kind.want_lse,
        )  # fmt: skip

    def _attend_by_kernels(
        self,
        layer: int,
        layers: Sequence[LayerMemory],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        call: AttentionCall,
    ) -> Stepped | None:
        """As `_attend_by_torch`; queries are rotated in advance only where a look-up asks for them."""
        kind = layers[0]
        looks_up = any(self._parts[s][1].spans[0].voters for s in self._live)
        far = (self._turning.turn(kind, q, k).far if looks_up else q).unsqueeze(2).unbind()
        ks, vs = k.unsqueeze(2).unbind(), v.unsqueeze(2).unbind()
        for s in self._live[:]:
            self._guarded(s, self._make_room, layer, far[s], ks[s], vs[s])
        if not self._live:
            return None
        angles = self._turning.angles(kind)
        if angles is not None:
            angles = self._of_live(angles[0]), self._of_live(angles[1])
        return attend_by_kernels(
            [layers[s] for s in self._live],
            self._of_live(q), self._of_live(k), self._of_live(v), angles, call, self._scratch,
        )  # fmt: skip

    def _of_live(self, rows: Tensor) -> Tensor:
        """Of ``[S, ...]`` the sessions that did not fail."""
        return rows if len(self._live) == len(self._parts) else rows[self._live]

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

    def _make_room(self, s: int, layer: int, q_far: Tensor, k: Tensor, v: Tensor) -> None:
        """As `_take_in`, but that a kernel will write the new token, and that `q_far` is rotated only
        where a session of the step looks up: no other reads it."""
        memory, reading = self._parts[s]
        memory.note(layer, k, v)
        own = memory.layers[layer]
        own.begin_step(q_far, reading)
        own.local.reserve(1)

    def _guarded(self, s: int, do: Callable[..., None], *args: object) -> None:
        if self._failed is None:
            do(s, *args)
            return
        try:
            do(s, *args)
        except Exception as error:
            self._live.remove(s)
            self._failed(s, error)
