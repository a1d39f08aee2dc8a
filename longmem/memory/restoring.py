"""Layers as a stored session left them, without running the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from longmem.memory.full_layer import FullLayer
from longmem.memory.layer import LayerMemory
from longmem.memory.placement import RowReader
from longmem.memory.spec import LayerSpec
from longmem.memory.window import BufferPlace

_SLAB = 8192  # tokens whose K/V is read at once


def restore_layers(
    layers: Sequence[LayerMemory],
    n_tokens: int,
    blocks: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    read_rows: RowReader,
) -> None:
    """Fill fresh layers with what `SessionMemory.export` gave and the store kept.

    Compressive memories are folded again from stored keys and values, chunk by chunk as they were,
    and so are indices of a form that is not stored.
    """
    full = [layer for layer in layers if isinstance(layer, FullLayer)]
    for each, closed in zip(full, state["closed"].tolist(), strict=True):
        i = each.spec.index
        each.restore(closed, blocks.get(f"representatives.{i}"), blocks.get(f"counts.{i}"))
        if closed >= 0:
            each.working_set.set_initial(*_rows(read_rows, each.spec, 0, each.table.n_init))
        if each.role.indexed and each.lookup.derived:
            _index_again(each, read_rows)
    for layer in layers:
        i = layer.spec.index
        first, offset, capacity = state[f"place.{i}"].tolist()
        k, v = _rows(read_rows, layer.spec, first, n_tokens)
        layer.load(k, v, state.get(f"mass.{i}"), first, BufferPlace(offset, capacity))
        _fold_again(layer, read_rows)


def _fold_again(layer: LayerMemory, read_rows: RowReader) -> None:
    if layer.compressive is None:
        return
    start, stop = layer.folded
    for at in range(start, stop, _SLAB):
        k, v = _rows(read_rows, layer.spec, at, min(at + _SLAB, stop))
        layer.compressive.fold(k, v)


def _index_again(layer: FullLayer, read_rows: RowReader) -> None:
    for block in range(max(layer.closed, 0)):
        keys, _ = _rows(read_rows, layer.spec, *layer.table.span(block))
        layer.lookup.add_derived(keys)
    layer.lookup.drop_front(layer.first)


def _rows(read_rows: RowReader, spec: LayerSpec, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Raw keys and values ``[H_kv, stop - start, D]`` of committed tokens."""
    k, v = read_rows(spec.index, start, stop).to(spec.device).permute(1, 2, 0, 3)
    return k, v
