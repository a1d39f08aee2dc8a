"""One forward pass over the packed tokens of several sessions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from longmem.memory.reading import AttentionCall, Reading
from longmem.memory.session_memory import SessionMemory
from longmem.memory.steps import Steps
from longmem.ops.scratch import Scratch


class ForwardPass:
    """Routes each layer's packed queries, keys and values to the sessions they belong to.

    A session whose part fails, for instance because a block of it cannot be read from its store, does
    not disturb the others: it is left out of the layers to come, and `failed` says why.

    Sessions that read a single token take their step together (`Steps`), all others each by itself.

    Args:
        parts: per session its memory and what it reads, in the order in which tokens are packed.
        scratch: what steps compute in; give all passes of an engine the same one.
    """

    def __init__(
        self, parts: Sequence[tuple[SessionMemory, Reading]], scratch: Scratch | None = None
    ) -> None:
        self.parts = parts
        self.failed: dict[int, Exception] = {}
        """By the number of the part: why it was given up. Its memory has to be rewound. A part alone
        in its pass raises instead."""
        single = [i for i, (memory, reading) in enumerate(parts) if _is_step(memory, reading)]
        starts = [0, *accumulate(reading.tokens for _, reading in parts)]
        self._others = [
            (i, slice(*starts[i : i + 2])) for i in range(len(parts)) if i not in single
        ]
        self._columns = torch.tensor([starts[i] for i in single])
        self._scratch = scratch = scratch or Scratch()
        alone = len(parts) == 1
        self._steps = Steps(
            [parts[i] for i in single],
            scratch,
            None if alone else lambda s, error: self.failed.update({single[s]: error}),
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """Attention of one layer.

        Args:
            layer: its number.
            q: ``[1, H, sum T, D]`` un-rotated queries of all sessions' tokens.
            k, v: ``[1, H_kv, sum T, D]`` their keys and values.
            call: the layer's attention settings.

        Returns:
            ``[1, sum T, H, D]``, which the next layer may overwrite.
        """
        if len(self.parts) == 1 and self._others:
            memory, reading = self.parts[0]
            out = memory.read_layer(layer, q[0], k[0], v[0], reading, call)
            return out.transpose(0, 1).unsqueeze(0)
        q, k, v = by_token = [x[0].transpose(0, 1) for x in (q, k, v)]  # [sum T, H, D]
        if not self._others:
            return self._steps.attend(layer, q, k, v, call).unsqueeze(0)
        result = torch.empty_like(q)
        for i, part in self._others:
            tokens = [x[part].transpose(0, 1) for x in by_token]
            result[part] = self._read(i, layer, tokens, call)
        if len(self._columns):
            at = self._scratch.upload("columns", self._columns, q.device)
            result[at] = self._steps.attend(layer, q[at], k[at], v[at], call)
        return result.unsqueeze(0)

    def _read(
        self, i: int, layer: int, tokens: Sequence[Tensor], call: AttentionCall
    ) -> Tensor | float:
        """Part i by itself: ``[T, H, D]``, or zero, finite whatever layers above make of it, if it
        failed."""
        memory, reading = self.parts[i]
        try:
            if i not in self.failed:
                q, k, v = tokens
                return memory.read_layer(layer, q, k, v, reading, call).transpose(0, 1)
        except Exception as error:
            self.failed[i] = error
        return 0.0

    def finish(self) -> None:
        """All layers are through."""
        for i, (memory, reading) in enumerate(self.parts):
            if i not in self.failed:
                memory.advance(reading)


def _is_step(memory: SessionMemory, reading: Reading) -> bool:
    return reading.tokens == 1 and all(layer.takes_steps for layer in memory.layers)
