"""One recycled decode step of S sessions through the whole model, told by tables on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.attention import forward
from longmem.compiled import Compiled
from longmem.graphs.angles import StepAngles
from longmem.graphs.inputs import Inputs
from longmem.graphs.kinds import LayerKind
from longmem.graphs.said import Said
from longmem.memory import AttentionCall, Scratch
from longmem.ops.step_attention.stepping import attend_places, take_in


class StepBody:
    """The step, as it is run once and again or captured: it allocates what it returns, waits for nothing,
    and asks nobody on the host.

    Args:
        model: attached to longmem.
        kinds: the layers.
        inputs: what it reads.
        columns: most tokens a session attends to in a layer.
        run: what is called in place of the model: its compiled form, or None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kinds: Sequence[LayerKind],
        inputs: Inputs,
        columns: int,
        run: Compiled | None = None,
    ) -> None:
        self._model, self._run = model, run
        self._inputs, self._columns = inputs, columns
        self._scratch = Scratch()  # a graph's own: what it once took must stay where it is
        self._kinds, self._angles = kinds, StepAngles(kinds, inputs.positions)
        self._places = [inputs.places(i) for i in range(len(kinds))]
        self._all = torch.arange(inputs.shape.sessions, device=inputs.device)

    blocks = 0
    """Most candidates its look-ups have room for; there are none."""

    @property
    def told(self) -> Tensor:
        """What the host is to download besides what the step says; nothing."""
        return self._all[:0]

    @property
    def bytes(self) -> int:
        """Bytes of scratch memory."""
        return self._scratch.bytes

    def __call__(self) -> Said:
        """Read one token of each session."""
        return self._read(self._run)

    def uncompiled(self) -> Said:
        """The same by the model's own code."""
        return self._read(None)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """One layer; shapes as `longmem.memory.ForwardPass.attend`."""
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [S, H, D]
        kind, places = self._kinds[layer], self._places[layer]
        near, far = (
            self._scratch.take(name, tuple(q.shape), q.dtype, q.device) for name in ("near", "far")
        )
        style = "half" if kind.spec.rotary is None else kind.spec.rotary.style
        take_in(q, k, v, self._angles.of(layer), places, near, far, style=style)
        self._look_up(layer, far)
        done = attend_places(
            near, far, places,
            n_local=kind.n_local, pending=kind.pending, columns=self._columns,
            scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
            mass_of=kind.mass_of, want_lse=False, want_weights=False, scratch=self._scratch,
        )  # fmt: skip
        return done.out.unsqueeze(0)

    def _look_up(self, layer: int, q_far: Tensor) -> None:
        """Far queries ``[S, H, D]`` are there, and nothing was attended to; a recycled step goes on."""

    def _read(self, run: Compiled | None) -> Said:
        self._angles.turn()
        logits = forward(self._model, self._inputs.ids, self, self._all, run)
        return Said(logits, logits.argmax(-1))
