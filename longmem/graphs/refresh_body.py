"""One decode step in which every layer looks up, told by tables on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.compiled import Compiled
from longmem.graphs.body import StepBody
from longmem.graphs.lookup_inputs import LookupInputs
from longmem.graphs.lookups import LookupKind
from longmem.memory import Scratch
from longmem.ops.block_gather.choosing import Told, place_chosen
from longmem.ops.block_scoring import Bounds, score_and_choose


class RefreshBody(StepBody):
    """As `StepBody`; between a layer's queries and its attention blocks are chosen and placed.

    Args:
        model, kinds, inputs, columns, run: as of `StepBody`.
        blocks: most candidates of a session.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kinds: Sequence[LookupKind],
        inputs: LookupInputs,
        columns: int,
        run: Compiled | None,
        blocks: int,
    ) -> None:
        super().__init__(model, kinds, inputs, columns, run)
        self._tables, self._layers = inputs, kinds
        self.blocks = blocks
        self._chosen = Scratch()
        looking = [i for i, kind in enumerate(kinds) if kind.looks_up]
        self._told_at = {layer: n for n, layer in enumerate(looking)}
        shape = (len(looking), 2, inputs.shape.sessions, kinds[looking[0]].topk)
        self._told = torch.zeros(shape, dtype=torch.int32, device=inputs.device)
        self._last = 0

    @property
    def told(self) -> Tensor:
        """``[layers that look up, 2, S, k]`` int32: what was chosen, and the bits of the votes it got."""
        return self._told

    @property
    def bytes(self) -> int:
        """Bytes of scratch memory."""
        return super().bytes + self._chosen.bytes

    def _look_up(self, layer: int, q_far: Tensor) -> None:
        kind = self._layers[layer]
        if not kind.attends:
            return
        votes = self._choose(layer, kind, q_far) if kind.looks_up else None
        place_chosen(
            self._told[self._last, 0], self._tables.directories(layer), self._places[layer],
            kind.block_size, q_far, self._chosen, votes,
        )  # fmt: skip

    def _choose(self, layer: int, kind: LookupKind, q_far: Tensor) -> Told:
        table, self._last = self._tables.indexes(layer), self._told_at[layer]
        queries = q_far.view(len(q_far), kind.spec.kv_heads, -1, q_far.shape[2])
        choice = score_and_choose(
            queries, table, Bounds(self.blocks, kind.most_rows),
            k=kind.topk, scaling=kind.spec.scaling, scratch=self._chosen,
        )  # fmt: skip
        ids, votes = self._told[self._last]
        ids.copy_(choice.ids)
        return Told(table, choice.totals, votes.view(torch.float32))
