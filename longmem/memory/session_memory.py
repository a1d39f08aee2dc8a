"""The memory of one session: all layers, where blocks end, and what is not yet durable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.blocks import BlockTable
from longmem.memory.boundaries import ExpectedText, TextMark
from longmem.memory.compressive import CompressiveMemory
from longmem.memory.full_layer import FullLayer
from longmem.memory.gates import Gates
from longmem.memory.journal import Journal
from longmem.memory.layer import LayerMark, LayerMemory
from longmem.memory.placement import RowReader
from longmem.memory.reading import AttentionCall, Decide, Reading, ReadSpan
from longmem.memory.restoring import restore_layers
from longmem.memory.role import LayerRole
from longmem.memory.segment_layer import SegmentLayer
from longmem.memory.sliding_layer import SlidingLayer
from longmem.memory.spec import LayerSpec


@dataclass(frozen=True, eq=False)
class Mark:
    """A point `SessionMemory.rewind` can go back to."""

    n_tokens: int
    n_edges: int
    layers: tuple[LayerMark, ...]
    text: TextMark | None


@dataclass(frozen=True)
class Exported:
    """What a commit stores of the tokens read since the last one (see `longmem.store.Commit`)."""

    kv: list[Tensor]
    blocks: dict[str, Tensor]
    state: dict[str, Tensor]


class SessionMemory:
    """Everything later results read, for one session.

    Args:
        specs: the model's attention layers.
        config: the memory settings.
        n_init: initial tokens of this session (config.n_init, or a longer system turn).
        gates: of the compressive memory; None leaves it closed.
        journal: keep the K/V of new tokens until they are exported; off without a store.
    """

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        config: MemoryConfig,
        n_init: int,
        *,
        gates: Gates | None = None,
        journal: bool = True,
    ) -> None:
        self.config = config
        self.n_tokens = 0
        self.table = BlockTable(
            n_init, config.block_size, config.block_boundaries, config.n_local, config.min_block
        )
        self.text = ExpectedText(config, n_init) if config.block_boundaries == "surprise" else None
        """What the model expected, where that decides on boundaries."""
        self.layers = _layers(specs, config, self.table, gates)
        self._journal = Journal(len(specs)) if journal else None
        self._exported_edges = 1

    @property
    def full_layers(self) -> list[FullLayer]:
        """The layers that keep blocks."""
        return [layer for layer in self.layers if isinstance(layer, FullLayer)]

    @property
    def n_blocks(self) -> int:
        """Closed blocks per layer."""
        return max((max(layer.closed, 0) for layer in self.full_layers), default=0)

    @property
    def window_tokens(self) -> int:
        """Tokens in the local window and pending."""
        return max((len(layer.local) for layer in self.layers), default=0)

    @property
    def bytes_device(self) -> int:
        """Bytes of buffers on the model's device: window, working sets, representatives, M and z."""
        full = self.full_layers
        held = (layer.compressive for layer in self.layers)
        recycled = (layer.recycled for layer in full)
        return (
            sum(layer.local.bytes for layer in self.layers)
            + sum(layer.working_set.bytes + layer.lookup.bytes for layer in full)
            + sum(memory.bytes for memory in held if memory)
            + sum(best.bytes for best in recycled if best)
        )

    def prepare(
        self,
        spans: Sequence[ReadSpan],
        turn_starts: Sequence[int] = (),
        trace: bool = False,
        decide: Decide | None = None,
    ) -> Reading:
        """Plan to read the tokens of `spans` next.

        Args:
            spans: look-up spans of the tokens, in order.
            turn_starts: offsets of those tokens that start a turn.
            trace: record what look-ups choose.
            decide: which layers look up; see `Reading`.
        """
        starts = [self.n_tokens + offset for offset in turn_starts]
        reading = Reading(self.n_tokens, spans, trace, decide, starts)
        for position in starts:
            self.table.begin_turn(position)
        self.table.extend(self.n_tokens + reading.tokens)
        return reading

    def read_layer(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, reading: Reading, call: AttentionCall
    ) -> Tensor:
        """One layer of a forward pass; shapes as `LayerMemory.read`."""
        if self._journal is not None:
            self._journal.write(layer, k, v)
        return self.layers[layer].read(q, k, v, reading, call)

    def advance(self, reading: Reading) -> None:
        """A forward pass is through: its tokens are part of the history."""
        self.n_tokens += reading.tokens
        if self._journal is not None:
            self._journal.settle(reading.tokens)

    def see(self, reading: Reading, ids: Tensor, logits: Tensor) -> None:
        """What the model expected in the pass just through, where boundaries depend on it.

        Args:
            reading: the pass.
            ids: ``[T]`` its tokens.
            logits: ``[T, V]`` after each of them.
        """
        assert self.text is not None
        self.table.append(self.text.see(reading, ids, logits, self._similar_keys))

    def mark(self) -> Mark:
        """The present state, to go back to."""
        layers = tuple(layer.mark() for layer in self.layers)
        text = self.text.mark() if self.text else None
        return Mark(self.n_tokens, len(self.table.edges), layers, text)

    def rewind(self, mark: Mark) -> None:
        """Forget everything read after `mark`, bit for bit, also after a pass that failed."""
        for layer, layer_mark in zip(self.layers, mark.layers, strict=True):
            layer.rewind(layer_mark)
        self.table.truncate(mark.n_edges)
        if self.text is not None and mark.text is not None:
            self.text.rewind(mark.text)
        self.n_tokens = mark.n_tokens
        if self._journal is not None:
            self._journal.shorten(mark.n_tokens)

    def attach(self, read_rows: RowReader) -> None:
        """Read blocks that left host memory through `read_rows`."""
        for layer in self.full_layers:
            layer.tier.attach(read_rows)

    def export(self) -> Exported:
        """K/V, blocks and state since the last `exported`.

        Everything is a copy: what is read afterwards does not change it.
        """
        assert self._journal is not None, "memory was built without a journal"
        full = self.full_layers
        edges = self.table.edges
        blocks = {"edges": torch.tensor(edges[self._exported_edges :], dtype=torch.int64)}
        state = {
            "closed": torch.tensor([layer.closed for layer in full], dtype=torch.int64),
            "n_init": torch.tensor([self.table.n_init], dtype=torch.int64),
        }
        for layer in self.layers:
            place = (layer.local.first, layer.local.place.offset, layer.local.place.capacity)
            state[f"place.{layer.spec.index}"] = torch.tensor(place, dtype=torch.int64)
        for layer in full:
            i = layer.spec.index
            if layer.role.indexed:
                keys, counts = layer.lookup.index.export(layer.exported_blocks)
                blocks[f"representatives.{i}"] = keys.cpu()
                blocks[f"counts.{i}"] = counts
            state[f"mass.{i}"] = layer.local.mass.clone().cpu()
        if self.text is not None:
            state |= self.text.export()
        return Exported(self._journal.export(), blocks, state)

    def exported(self) -> None:
        """What was read so far is committed: no `rewind` will go behind this point."""
        self._exported_edges = len(self.table.edges)
        if self._journal is not None:
            self._journal.clear(self.n_tokens)
        for layer in self.full_layers:
            layer.commit()

    def restore(
        self,
        n_tokens: int,
        blocks: dict[str, Tensor],
        state: dict[str, Tensor],
        read_rows: RowReader,
    ) -> None:
        """Become the session that exported `blocks` and `state`, without running the model."""
        self.n_tokens = n_tokens
        self.table.edges[1:] = blocks["edges"].tolist()
        if self.text is not None:
            self.text.load(state)
        restore_layers(self.layers, n_tokens, blocks, state, read_rows)
        self.attach(read_rows)
        self.exported()

    def _similar_keys(self, start: int, stop: int) -> Tensor:
        """Raw keys ``[stop - start, H_kv * D]`` of the first layer that looks up, or of the first."""
        full = self.full_layers
        local = next((layer for layer in full if layer.role.indexed), full[0]).local
        keys = local.raw[:, start - local.first : stop - local.first]
        return keys.transpose(0, 1).flatten(1)


def _layers(
    specs: Sequence[LayerSpec], config: MemoryConfig, table: BlockTable, gates: Gates | None
) -> list[LayerMemory]:
    sharing = max(1, sum(LayerRole.of(spec, config).attends for spec in specs))
    return [_layer(spec, config, table, gates, config.host_bytes // sharing) for spec in specs]


def _layer(
    spec: LayerSpec, config: MemoryConfig, table: BlockTable, gates: Gates | None, host_bytes: int
) -> LayerMemory:
    segment = config.window == "segment"
    chunk = config.n_local if segment or config.compressive is None else config.compressive.chunk
    compressive = CompressiveMemory.of_layer(spec, config.compressive, gates, chunk)
    if spec.sliding:
        return SlidingLayer(spec, compressive)
    if segment:
        return SegmentLayer(spec, config.n_local, compressive)
    return FullLayer(spec, config, table, host_bytes, compressive)
