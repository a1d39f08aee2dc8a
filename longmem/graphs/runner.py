"""Recycled steps of whole sessions, each launched as one graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel

from longmem.compiled import Compiled
from longmem.feeding import Feed
from longmem.graphs.capture import Captured, Pool
from longmem.graphs.inputs import Inputs, Shape
from longmem.graphs.kinds import LayerKind, kinds_of
from longmem.graphs.rows import Row, row_of
from longmem.graphs.said import Said
from longmem.graphs.spare import Spare
from longmem.memory import LayerSpec, SessionMemory

if TYPE_CHECKING:
    from longmem.graphs.body import StepBody  # imports triton
    from longmem.graphs.refreshes import RefreshGraphs

_log = logging.getLogger(__name__)
Wanted = bool | Literal["compiled"] | None
"""As `longmem.Engine` has it."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A step of as many sessions as `inputs` has room for.

    Args:
        inputs: what it reads.
        columns: most tokens a session may attend to in a layer.
        body, captured: what it does.
    """

    inputs: Inputs
    columns: int
    body: StepBody
    captured: Captured[Said]


class StepGraphs:
    """The graphs of one model: one for each number of sessions, rounded up to a power of two.

    Nothing in a graph depends on whose tokens it reads: where keys and values lie is told by tables,
    brought with the tokens in one small copy. Sessions come and go, and their buffers move, without a
    new capture; only where a working set outgrows the memory of a graph a larger one is made. For one
    thread at a time.

    Args:
        model: attached to longmem; its weights have to stay where they are.
        layers: its attention layers.
        compiled: let torch compile what the model does between the attention of two layers.
    """

    what = "decode steps"
    """What they are graphs of."""

    def __init__(
        self, model: PreTrainedModel, layers: Sequence[LayerSpec], compiled: bool = False
    ) -> None:
        self._model, self._specs = model, layers
        self._run = Compiled(model) if compiled else None
        self._device = layers[0].device
        self._kinds: Sequence[LayerKind] | None = None
        self._served: WeakKeyDictionary[SessionMemory, bool] = WeakKeyDictionary()
        self._rows: WeakKeyDictionary[SessionMemory, Row] = WeakKeyDictionary()
        self._graphs: dict[int, Graph] = {}
        self._spare: Spare | None = None
        self._pool: Pool = None
        self.replays = 0
        """Passes that went through a graph."""
        self.captures = 0
        """Graphs made."""
        self.refused: str | None = None
        """Why no graph is used; None while they are."""
        self.uncompiled: str | None = None
        """Why torch compiles nothing although it was wanted; None while it does, or was not wanted."""
        self._too_many: int | None = None  # for so many sessions memory does not suffice
        self._blocks = 0  # candidates of look-ups for which there has to be room
        self.refreshes: RefreshGraphs | None = None
        """The graphs of steps that look up."""
        if any(weight.device != self._device for weight in model.parameters()):
            self.refused = "the model lies on several devices"

    @classmethod
    def of(
        cls, model: PreTrainedModel, layers: Sequence[LayerSpec], wanted: Wanted
    ) -> StepGraphs | None:
        """Where kernels serve all layers; None elsewhere. `wanted`: see `longmem.Engine`."""
        if wanted is None:
            wanted = all(layer.device.type == "cuda" for layer in layers)
        if not wanted or not all(layer.kernels for layer in layers):
            return None
        from longmem.graphs.refreshes import RefreshGraphs

        made = cls(model, layers, wanted == "compiled")
        made.refreshes = RefreshGraphs(made)
        return made

    @property
    def scratch_bytes(self) -> int:
        """Bytes that the graphs compute attention in."""
        return sum(graph.body.bytes for graph in self._graphs.values())

    def takes(self, feed: Feed) -> bool:
        """Whether `feed` is a recycled step for certain, and all that its session does in one a graph can
        do."""
        if self.refused or len(feed.ids) != 1 or any(span.voters for span in feed.spans):
            return False
        return self._serves(feed.memory)

    def _serves(self, memory: SessionMemory) -> bool:
        if memory not in self._served:
            kinds = self._kinds_of(memory)
            self._kinds = self._kinds or kinds
            self._served[memory] = kinds is not None and kinds == self._kinds
        return self._served[memory]

    def graph_for(self, memories: Sequence[SessionMemory]) -> Graph | None:
        """The graph for the next step of these sessions, in whose buffers there is room for it then; None
        if they have to take it without one."""
        try:
            columns = max(self._row(memory).columns for memory in memories)
        except torch.OutOfMemoryError:  # without a graph no room is made ahead
            return None
        size = 1 << (len(memories) - 1).bit_length()
        graph = self._graphs.get(size)
        if graph is not None and graph.columns >= columns and graph.body.blocks >= self._blocks:
            return graph
        if self._too_many is not None and size >= self._too_many:
            return None
        return self._make(size, 1 << (columns - 1).bit_length())

    def run(self, graph: Graph, memories: Sequence[SessionMemory], ids: Sequence[int]) -> Said:
        """The step.

        Args:
            graph: from `graph_for`, for these sessions or more.
            memories: the sessions' memories; `SessionMemory.stepped` is left to the caller.
            ids: the tokens they read.

        Returns:
            Logits that stay, and the likeliest tokens, which the next step writes over.
        """
        self._upload(graph.inputs, memories, ids)
        with torch.inference_mode(False), torch.no_grad():
            said = graph.captured.run()
            self.replays += 1
            return Said(said.logits[: len(ids)].clone(), said.best[: len(ids)])

    def _kinds_of(self, memory: SessionMemory) -> Sequence[LayerKind] | None:
        return kinds_of(memory)

    def _row(self, memory: SessionMemory) -> Row:
        row = self._rows.get(memory)
        if row is None or row.version != memory.version or memory.uncounted >= row.steps:
            row = self._rows[memory] = row_of(memory)
        return row

    def _make(self, sessions: int, columns: int) -> Graph | None:
        """Make a graph, or find out that it cannot be done: for so many sessions, or at all."""
        try:
            with torch.inference_mode(False), torch.no_grad():
                made = self._captured(sessions, columns)
        except torch.OutOfMemoryError as error:
            self._graphs.pop(sessions, None)
            self._too_many = sessions
            self._warn(f"{sessions} sessions and more go without CUDA graphs", error)
            return None
        except Exception as error:
            if self._run is not None:
                self._run, self.uncompiled = None, f"{type(error).__name__}: {error}"
                self._warn("nothing is compiled", error)
                return self._make(sessions, columns)
            self._graphs.clear()
            self.refused = f"{type(error).__name__}: {error}"
            self._warn("no CUDA graphs are used", error)
            return None
        self._graphs[sessions] = (
            made  # only now what was there may go: its pool must not be left empty
        )
        self.captures += 1
        return made

    def _warn(self, what: str, error: Exception) -> None:
        name, why = type(self._model).__name__, f"{type(error).__name__}: {error}"
        _log.warning("%s of %s take longer: %s (%s)", self.what, name, what, why)

    def _captured(self, sessions: int, columns: int) -> Graph:
        assert self._kinds is not None
        self._spare = self._spare or Spare.of(self._specs)
        if not self._graphs and self._device.type == "cuda":
            self._pool = torch.cuda.graph_pool_handle()  # one that lost all graphs takes no other
        shape = Shape(sessions, len(self._kinds), self._specs[0].kv_heads)
        inputs = self._inputs(shape)
        self._upload(inputs, (), ())
        body = self._body(inputs, columns)
        captured = Captured(body, self._device, self._pool, body.uncompiled)
        return Graph(inputs, columns, body, captured)

    def _inputs(self, shape: Shape) -> Inputs:
        return Inputs(shape, self._device)

    def _body(self, inputs: Inputs, columns: int) -> StepBody:
        from longmem.graphs.body import StepBody

        assert self._kinds is not None
        return StepBody(self._model, self._kinds, inputs, columns, self._run)

    def _upload(
        self, inputs: Inputs, memories: Sequence[SessionMemory], ids: Sequence[int]
    ) -> None:
        """Bring what these sessions read; places that are left go to nobody's spare row."""
        assert self._spare is not None
        left = inputs.shape.sessions - len(ids)
        none = [0] * left
        inputs.upload(
            [*ids, *none],
            [*(memory.n_tokens for memory in memories), *none],
            [*(memory.uncounted for memory in memories), *none],
            [*(self._rows[memory] for memory in memories), *[self._spare.row] * left],
        )
