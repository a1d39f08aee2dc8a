"""The memory of one session: all layers, where blocks end, and what is not yet durable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.blocks import BlockTable
from longmem.memory.layer import FullLayer, LayerMark, LayerMemory, SlidingLayer, attends_blocks
from longmem.memory.placement import RowReader
from longmem.memory.reading import AttentionCall, Decide, Reading, ReadSpan
from longmem.memory.spec import LayerSpec
from longmem.memory.window import BufferPlace

_MANY_TOKENS = 64


@dataclass(frozen=True, eq=False)
class Mark:
    """A point `SessionMemory.rewind` can go back to."""

    n_tokens: int
    n_edges: int
    layers: tuple[LayerMark, ...]


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
        journal: keep the K/V of new tokens until they are exported; off without a store.
    """

    def __init__(
        self,
        specs: Sequence[LayerSpec],
        config: MemoryConfig,
        n_init: int,
        *,
        journal: bool = True,
    ) -> None:
        self.config = config
        self.n_tokens = 0
        self.table = BlockTable(
            n_init, config.block_size, config.block_boundaries == "turn", config.n_local
        )
        sharing = sum(attends_blocks(spec, config) for spec in specs)
        self.layers: list[LayerMemory] = [
            SlidingLayer(spec)
            if spec.sliding
            else FullLayer(spec, config, self.table, config.host_bytes // max(sharing, 1))
            for spec in specs
        ]
        self._journal: list[list[Tensor]] | None = [[] for _ in specs] if journal else None
        self._exported_tokens = 0
        self._exported_blocks = 0
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
        """Bytes of buffers on the model's device: window, working sets, representatives."""
        full = self.full_layers
        return sum(layer.local.bytes for layer in self.layers) + sum(
            layer.working_set.bytes + layer.index.bytes for layer in full
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
        reading = Reading(self.n_tokens, spans, trace, decide)
        for offset in turn_starts:
            self.table.begin_turn(self.n_tokens + offset)
        self.table.extend(self.n_tokens + reading.tokens)
        return reading

    def read_layer(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, reading: Reading, call: AttentionCall
    ) -> Tensor:
        """One layer of a forward pass; shapes as `LayerMemory.read`."""
        if self._journal is not None:
            self._journal[layer].append(torch.stack((k, v)))  # [2, H_kv, T, D]
        return self.layers[layer].read(q, k, v, reading, call)

    def advance(self, reading: Reading) -> None:
        """A forward pass is through: its tokens are part of the history."""
        self.n_tokens += reading.tokens
        if self._journal is not None and reading.tokens >= _MANY_TOKENS:
            for parts in self._journal:
                parts[-1] = parts[-1].cpu()  # of long reads; single tokens are not worth a transfer

    def mark(self) -> Mark:
        """The present state, to go back to."""
        layers = tuple(layer.mark() for layer in self.layers)
        return Mark(self.n_tokens, len(self.table.edges), layers)

    def rewind(self, mark: Mark) -> None:
        """Forget everything read after `mark`, bit for bit, also after a pass that failed."""
        for layer, layer_mark in zip(self.layers, mark.layers, strict=True):
            layer.rewind(layer_mark)
        self.table.truncate(mark.n_edges)
        self.n_tokens = mark.n_tokens
        if self._journal is not None:
            for parts in self._journal:
                _shorten(parts, mark.n_tokens - self._exported_tokens)

    def attach(self, read_rows: RowReader) -> None:
        """Read blocks that left host memory through `read_rows`."""
        for layer in self.full_layers:
            layer.tier.attach(read_rows)

    def export(self) -> Exported:
        """K/V, blocks and state since the last `exported`.

        Everything is a copy: what is read afterwards does not change it.
        """
        assert self._journal is not None, "memory was built without a journal"
        kv = [
            torch.cat([part.cpu() for part in parts], dim=2).permute(2, 0, 1, 3).contiguous()
            for parts in self._journal
        ]
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
            if layer.indexed:
                keys, counts = layer.index.export(self._exported_blocks)
                blocks[f"representatives.{i}"] = keys.cpu()
                blocks[f"counts.{i}"] = counts
            state[f"mass.{i}"] = layer.local.mass.clone().cpu()
        return Exported(kv, blocks, state)

    def exported(self) -> None:
        """What was read so far is committed: no `rewind` will go behind this point."""
        self._exported_tokens = self.n_tokens
        self._exported_blocks = self.n_blocks
        self._exported_edges = len(self.table.edges)
        if self._journal is not None:
            for parts in self._journal:
                parts.clear()
        for layer in self.full_layers:
            layer.tier.set_durable(self.n_blocks)

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
        for layer in self.layers:
            i = layer.spec.index
            first, offset, capacity = state[f"place.{i}"].tolist()
            k, v = _rows(read_rows, layer.spec, first, n_tokens)
            layer.load(k, v, state.get(f"mass.{i}"), first, BufferPlace(offset, capacity))
        for layer, closed in zip(self.full_layers, state["closed"].tolist(), strict=True):
            i = layer.spec.index
            if layer.indexed:
                layer.index.load(blocks[f"representatives.{i}"], blocks[f"counts.{i}"])
            if closed >= 0:
                layer.working_set.set_initial(*_rows(read_rows, layer.spec, 0, self.table.n_init))
            layer.closed = closed
        self.attach(read_rows)
        self.exported()


def _rows(read_rows: RowReader, spec: LayerSpec, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Raw keys and values ``[H_kv, stop - start, D]`` of committed tokens."""
    k, v = read_rows(spec.index, start, stop).to(spec.device).permute(1, 2, 0, 3)
    return k, v


def _shorten(parts: list[Tensor], tokens: int) -> None:
    """Keep the first `tokens` tokens of journal entries ``[2, H_kv, T, D]``."""
    kept = 0
    for i, part in enumerate(parts):
        if kept + part.shape[2] > tokens:
            parts[i] = part[:, :, : tokens - kept]
            del parts[i + 1 :]
            break
        kept += part.shape[2]
    if parts and parts[-1].shape[2] == 0:
        parts.pop()
