"""The memory of one session: all layers, where blocks end, and what is not yet durable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.blocks import BlockTable
from longmem.memory.boundaries import ExpectedText, TextMark
from longmem.memory.budget import TierBudget
from longmem.memory.building import build_layers, groups_of
from longmem.memory.full_layer import FullLayer
from longmem.memory.gates import Gates
from longmem.memory.journal import Journal
from longmem.memory.layer import LayerMark, LayerMemory
from longmem.memory.reading import AttentionCall, Decide, Reading, ReadSpan
from longmem.memory.restoring import restore_layers
from longmem.memory.source import BlockSource
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

    LAZY = ("codes.", "key_scales.", "value_scales.", "representatives.", "shelf_")
    """Beginnings of the names of exported blocks that `restore` does not need: they are read by and
    by, from the store."""

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
        self._groups = groups_of(config, self.table)
        self._budget = TierBudget(config, specs)
        self._layers = build_layers(specs, config, self.table, gates, self._budget, self._groups)
        self._journal = Journal(len(specs)) if journal else None
        self._exported_edges = 1
        self.version = 0
        """Grows whenever layers may hold other tokens, or hold them elsewhere; not with `uncounted`."""
        self.uncounted = 0
        """The newest tokens that lie in the layers' buffers (see `stepped`), but are not counted there."""

    @property
    def layers(self) -> list[LayerMemory]:
        """All layers, every token counted."""
        self._count()
        return self._layers

    @property
    def full_layers(self) -> list[FullLayer]:
        """The layers that keep blocks; tokens may be `uncounted` there."""
        return [layer for layer in self._layers if isinstance(layer, FullLayer)]

    @property
    def n_blocks(self) -> int:
        """Closed blocks per layer."""
        return max((max(layer.closed, 0) for layer in self.full_layers), default=0)

    @property
    def window_tokens(self) -> int:
        """Tokens in the local window and pending."""
        return max((len(layer.local) for layer in self._layers), default=0) + self.uncounted

    @property
    def bytes_device(self) -> int:
        """Bytes of buffers on the model's device: window, working sets, block slots, representatives,
        M and z."""
        full = self.full_layers
        held = (layer.compressive for layer in self._layers)
        recycled = (layer.recycled for layer in full)
        return (
            sum(layer.local.bytes for layer in self._layers)
            + sum(layer.working_set.bytes + layer.tier.slab_bytes for layer in full)
            + self.bytes_index
            + sum(memory.bytes for memory in held if memory)
            + sum(best.bytes for best in recycled if best)
        )

    @property
    def bytes_index(self) -> int:
        """Bytes of the block index of all layers."""
        return sum(layer.lookup.bytes for layer in self.full_layers)

    def prepare(
        self,
        spans: Sequence[ReadSpan],
        turn_starts: Sequence[int] = (),
        trace: bool = False,
        decide: Decide | None = None,
        *,
        beside: bool = False,
    ) -> Reading:
        """Plan to read the tokens of `spans` next.

        Args:
            spans: look-up spans of the tokens, in order.
            turn_starts: offsets of those tokens that start a turn.
            trace: record what look-ups choose.
            decide: which layers look up; see `Reading`.
            beside: a recycled step that passes the layers by; `stepped` follows instead of `advance`.
        """
        if not beside:
            self._count()
            self.version += 1
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
        self.note(layer, k, v)
        return self.layers[layer].read(q, k, v, reading, call)

    def note(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keep a layer's new keys and values ``[H_kv, T, D]`` for the next commit."""
        if self._journal is not None:
            self._journal.write(layer, k, v)

    def advance(self, reading: Reading) -> None:
        """A forward pass is through: its tokens are part of the history."""
        self.n_tokens += reading.tokens
        if self._journal is not None:
            self._journal.settle(reading.tokens)

    def stepped(self) -> None:
        """A recycled step is through that put its token straight into the layers' buffers. They, and the
        journal, are told when somebody looks: much later, of many tokens at once."""
        self.n_tokens += 1
        self.uncounted += 1

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
        self.uncounted = 0  # they came after all marks
        self.version += 1
        for layer, layer_mark in zip(self.layers, mark.layers, strict=True):
            layer.rewind(layer_mark)
        self.table.truncate(mark.n_edges)
        if self._groups is not None:
            self._groups.truncate(mark.n_edges - 1)
        if self.text is not None and mark.text is not None:
            self.text.rewind(mark.text)
        self.n_tokens = mark.n_tokens
        if self._journal is not None:
            self._journal.shorten(mark.n_tokens)

    def attach(self, source: BlockSource) -> None:
        """Read blocks that left host memory from `source`."""
        for layer in self.full_layers:
            layer.tier.attach(source)
            layer.lookup.attach(source)

    def export(self) -> Exported:
        """K/V, blocks and state since the last `exported`.

        Everything is a copy: what is read afterwards does not change it.
        """
        assert self._journal is not None, "memory was built without a journal"
        layers, full = self.layers, self.full_layers
        edges = self.table.edges
        blocks = {"edges": torch.tensor(edges[self._exported_edges :], dtype=torch.int64)}
        state = {
            "closed": torch.tensor([layer.closed for layer in full], dtype=torch.int64),
            "n_init": torch.tensor([self.table.n_init], dtype=torch.int64),
        }
        for layer in layers:
            place = (layer.local.first, layer.local.place.offset, layer.local.place.capacity)
            state[f"place.{layer.spec.index}"] = torch.tensor(place, dtype=torch.int64)
        for layer in full:
            i = layer.spec.index
            if layer.role.indexed:
                blocks |= layer.lookup.export(layer.exported_blocks)
            blocks |= {f"{name}.{i}": tensor for name, tensor in layer.tier.export().items()}
            if layer.local.keeps_mass:
                state[f"mass.{i}"] = layer.local.mass.clone().cpu()
        if self.text is not None:
            state |= self.text.export()
        return Exported(self._journal.export(), blocks, state)

    def exported(self) -> None:
        """What was read so far is committed: no `rewind` will go behind this point."""
        self._exported_edges = len(self.table.edges)
        if self._journal is not None:
            self._journal.clear(self.n_tokens)
        self._budget.charge_index(self.bytes_index)
        for layer in self.full_layers:
            layer.commit()

    def restore(
        self,
        n_tokens: int,
        blocks: dict[str, Tensor],
        state: dict[str, Tensor],
        source: BlockSource,
        lazy: Mapping[str, int] | None = None,
    ) -> None:
        """Become the session that exported `blocks` and `state`, without running the model.

        Args:
            n_tokens: tokens read.
            blocks, state: what `export` gave, of all commits; those of names in `LAZY` may be missing.
            source: where committed rows are read.
            lazy: how many rows there are of the missing ones.
        """
        self.version += 1
        self.n_tokens = n_tokens
        self.table.edges[1:] = blocks["edges"].tolist()
        if self.text is not None:
            self.text.load(state)
        rows = {name: len(tensor) for name, tensor in blocks.items()} | dict(lazy or {})
        restore_layers(self.layers, n_tokens, blocks, state, source, rows)
        self.exported()

    def _count(self) -> None:
        """Let layers and journal know of the tokens that steps put into the buffers."""
        n, self.uncounted = self.uncounted, 0
        if not n:
            return
        self.version += 1
        for i, layer in enumerate(self._layers):
            layer.local.grown(n)
            self.note(i, layer.local.raw[:, -n:], layer.local.v[:, -n:])
        if self._journal is not None:
            self._journal.settle(n)

    def _similar_keys(self, start: int, stop: int) -> Tensor:
        """Raw keys ``[stop - start, H_kv * D]`` of the first layer that looks up, or of the first."""
        full = self.full_layers
        local = next((layer for layer in full if layer.role.indexed), full[0]).local
        keys = local.raw[:, start - local.first : stop - local.first]
        return keys.transpose(0, 1).flatten(1)
