"""Layers as a stored session left them, without running the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from longmem.memory.full_layer import FullLayer
from longmem.memory.layer import LayerMemory
from longmem.memory.source import BlockSource
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.memory.window import BufferPlace

_SLAB = 8192  # tokens whose K/V is read at once


def restore_layers(
    layers: Sequence[LayerMemory],
    n_tokens: int,
    blocks: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    source: BlockSource,
    rows: Mapping[str, int],
) -> None:
    """Fill fresh layers with what `SessionMemory.export` gave and the store kept.

    Compressive memories are folded again from stored keys and values, chunk by chunk as they were,
    and so are indices of a form that is not stored. `rows` counts the rows of all stored tensors.
    """
    full = [layer for layer in layers if isinstance(layer, FullLayer)]
    stored = Stored(blocks, rows, source)
    for each, closed in zip(full, state["closed"].tolist(), strict=True):
        each.restore(closed, stored)
        each.tier.restore(max(closed, 0), source, rows)
        if closed >= 0:
            each.working_set.set_initial(*_rows(source, each.spec, 0, each.table.n_init))
        if each.role.indexed and each.lookup.derived:
            _index_again(each, source)
    for layer in layers:
        i = layer.spec.index
        first, offset, capacity = state[f"place.{i}"].tolist()
        k, v = _rows(source, layer.spec, first, n_tokens)
        layer.load(k, v, state.get(f"mass.{i}"), first, BufferPlace(offset, capacity))
        _fold_again(layer, source)


def _fold_again(layer: LayerMemory, source: BlockSource) -> None:
    if layer.compressive is None:
        return
    start, stop = layer.folded
    for at in range(start, stop, _SLAB):
        k, v = _rows(source, layer.spec, at, min(at + _SLAB, stop))
        layer.compressive.fold(k, v)


def _index_again(layer: FullLayer, source: BlockSource) -> None:
    for block in range(max(layer.closed, 0)):
        keys, _ = _rows(source, layer.spec, *layer.table.span(block))
        layer.lookup.add_derived(keys)
    layer.lookup.drop_front(layer.first)


def _rows(source: BlockSource, spec: LayerSpec, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Raw keys and values ``[H_kv, stop - start, D]`` of committed tokens."""
    k, v = source.read_kv(spec.index, start, stop).to(spec.device).permute(1, 2, 0, 3)
    return k, v
