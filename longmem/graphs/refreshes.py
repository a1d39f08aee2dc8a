"""Refreshes of whole sessions, each launched as one graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longmem.feeding import Feed
from longmem.graphs.inputs import Inputs, Shape
from longmem.graphs.kinds import LayerKind
from longmem.graphs.lookup_inputs import LookupInputs
from longmem.graphs.lookups import (
    LookupKind,
    LookupRow,
    lookup_kinds_of,
    lookup_row_of,
    note_chosen,
)
from longmem.graphs.rows import Row
from longmem.graphs.runner import StepGraphs
from longmem.graphs.said import Said
from longmem.memory import Reading, SessionMemory
from longmem.memory.transfers import transfers_of

if TYPE_CHECKING:
    from longmem.graphs.refresh_body import RefreshBody  # imports triton


FEWEST_BLOCKS = 1024
"""Candidates for which a graph has room at least: few are made while a session grows."""


class RefreshGraphs(StepGraphs):
    """Graphs of steps in which all layers look up: which blocks are chosen, where they lie and how many
    tokens they have is found on the device; the host hears of it afterwards, in one download.

    Args:
        steps: the graphs of the steps between.
    """

    what = "decode steps with a look-up"

    def __init__(self, steps: StepGraphs) -> None:
        super().__init__(steps._model, steps._specs)
        self._run = steps._run
        self._lookups: dict[SessionMemory, LookupRow] = {}
        self._blocks = FEWEST_BLOCKS

    def takes(self, feed: Feed) -> bool:
        """Whether `feed` is a step at which all layers look up, whatever their queries are, and all that
        its session does in one a graph can do: perhaps not at this one (`read`)."""
        if self.refused or len(feed.ids) != 1 or (feed.decide is not None and feed.asks):
            return False
        (span,) = feed.spans
        return span.voters == 1 and span.layers is None and self._serves(feed.memory)

    def read(
        self, parts: Sequence[tuple[SessionMemory, Reading]], ids: Sequence[int]
    ) -> tuple[Said, Mapping[int, Exception]] | None:
        """The step of these sessions, of which they are told all; None if there are none, or they have
        to take it without a graph.

        Args:
            parts: per session its memory, ready to look up (`close_due`), and what it reads.
            ids: the tokens they read.

        Returns:
            As `StepGraphs.run`; and why sessions failed afterwards, by the number of the part.
        """
        memories = [memory for memory, _ in parts]
        found = dict[SessionMemory, LookupRow]()
        for memory in memories:
            row = lookup_row_of(memory)
            if row is None:
                return None
            found[memory] = row
        most = max((row.blocks for row in found.values()), default=0)
        if most > self._blocks:
            self._blocks = 1 << (most - 1).bit_length()
        graph = self.graph_for(memories) if memories else None
        if graph is None:
            return None
        self._lookups = found
        transfers_of(self._device).await_all_on_device()
        try:
            said = self.run(graph, memories, ids)
        finally:
            self._lookups = {}
        return said, self._tell(parts, graph.body.told.cpu())

    def _tell(
        self, parts: Sequence[tuple[SessionMemory, Reading]], told: Tensor
    ) -> Mapping[int, Exception]:
        """Let the sessions know: `told` as `RefreshBody.told`."""
        failed = dict[int, Exception]()
        chosen = told[:, 0].tolist()
        shares = told[:, 1].view(torch.float32) / self._specs[0].heads  # each spends one vote
        for s, (memory, reading) in enumerate(parts):
            try:
                note_chosen(memory, reading, [layer[s] for layer in chosen], shares[:, s])
            except Exception as error:
                failed[s] = error
            memory.stepped()
        return failed

    def _kinds_of(self, memory: SessionMemory) -> Sequence[LayerKind] | None:
        return lookup_kinds_of(memory)

    def _row(self, memory: SessionMemory) -> Row:
        row, config = super()._row(memory), memory.config
        return replace(row, columns=row.columns + config.topk * config.block_size)

    def _inputs(self, shape: Shape) -> Inputs:
        return LookupInputs(shape, self._device)

    def _body(self, inputs: Inputs, columns: int) -> RefreshBody:
        from longmem.graphs.refresh_body import RefreshBody

        assert isinstance(inputs, LookupInputs)
        kinds = [kind for kind in self._kinds or () if isinstance(kind, LookupKind)]
        return RefreshBody(self._model, kinds, inputs, columns, self._run, self._blocks)

    def _upload(
        self, inputs: Inputs, memories: Sequence[SessionMemory], ids: Sequence[int]
    ) -> None:
        super()._upload(inputs, memories, ids)
        assert isinstance(inputs, LookupInputs)
        inputs.upload_lookups([self._lookups[memory] for memory in memories])
