"""What a refresh takes for granted of a session's layers, and where one session's blocks lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.graphs.kinds import LayerKind, kinds_of
from longmem.memory import Choice, Reading, SessionMemory
from longmem.memory.full_layer import FullLayer
from longmem.memory.layer import LayerMemory


@dataclass(frozen=True)
class LookupKind(LayerKind):
    """What a look-up takes for granted of one layer, too.

    Args:
        attends: whether it attends to blocks.
        looks_up: whether it chooses them itself.
        topk: how many.
        block_size: most tokens of a block.
        most_rows: most rows of a block in the index.
    """

    attends: bool = False
    looks_up: bool = False
    topk: int = 0
    block_size: int = 0
    most_rows: int = 0


def lookup_kinds_of(memory: SessionMemory) -> tuple[LookupKind, ...] | None:
    """The kinds of a session's layers; None if its look-ups cannot go through a graph: they are not done
    by kernels from beginning to end, or blocks are not placed as they lie in memory."""
    kinds, config = kinds_of(memory), memory.config
    full = memory.full_layers
    looking = [layer for layer in full if layer.role.looks_up]
    copied = config.codec == "exact" and config.far_positions != "ordered"
    chosen = not any(layer.role.takes_all for layer in full)
    if kinds is None or not copied or not chosen or not looking:
        return None
    if not all(layer.lookup.fused for layer in looking):
        return None
    return tuple(
        _with_lookups(kind, layer, config.topk, config.block_size)
        for kind, layer in zip(kinds, memory.layers, strict=True)
    )


@dataclass(frozen=True, eq=False)
class LookupRow:
    """One session's rows for the look-ups of all L layers.

    Args:
        indexes: ``[L, 6]`` int64, each an `IndexRow`; zeros where a layer does not look up.
        directories: ``[L, 2]`` int64, as `longmem.ops.block_gather.choosing.place_chosen` has them;
            zeros where a layer attends to no blocks.
        blocks: candidates.
    """

    indexes: Tensor
    directories: Tensor
    blocks: int


def lookup_row_of(memory: SessionMemory) -> LookupRow | None:
    """Where a session's look-ups find everything now; None if they cannot go through a graph at this
    step: there are fewer blocks than are chosen, look-ups go through groups, or a block lies in the
    store alone."""
    indexes, directories, blocks = list[tuple[int, ...]](), list[tuple[int, int]](), 0
    for layer in memory.layers:
        index: tuple[int, ...] = (0,) * 6
        directory = (0, 0)
        if isinstance(layer, FullLayer) and layer.role.looks_up:
            if layer.closed - layer.first < memory.config.topk or layer.lookup.index.grouped:
                return None
            index, blocks = layer.lookup.index.row, layer.closed - layer.first
        if isinstance(layer, FullLayer) and layer.role.attends:
            address = layer.tier.directory(layer.first, layer.closed)
            if address is None:
                return None
            directory = address, len(layer.working_set)
        indexes.append(index)
        directories.append(directory)
    return LookupRow(torch.tensor(indexes), torch.tensor(directories), blocks)


def close_due(memory: SessionMemory, reading: Reading) -> None:
    """What layers do at a look-up before they choose: let blocks, or what left a sliding window, go from
    the local buffer, and hold no blocks."""
    for layer in memory.layers:
        if isinstance(layer, FullLayer):
            layer.close(layer.table.closed(memory.n_tokens))
            layer.working_set.clear()
        else:
            layer.begin_step(layer.local.raw[:, :0], reading)


def note_chosen(
    memory: SessionMemory, reading: Reading, chosen: Sequence[Sequence[int]], votes: Tensor
) -> None:
    """Let a session know what a graph looked up and placed.

    Args:
        memory: the session's memory.
        reading: what it read.
        chosen: of each layer that looks up, the blocks.
        votes: ``[layers that look up, k]`` shares of the votes they got.
    """
    refreshed, n = reading.refreshed.setdefault(0, []), 0
    for layer in memory.full_layers:
        i = layer.spec.index
        if layer.role.looks_up:
            blocks = tuple(chosen[n])
            reading.chosen[0] = (blocks,)
            refreshed.append(i)
            if reading.decide is not None:
                reading.decide(i, votes[:0])  # it is asked, and counts, but looks at no query
            if reading.trace:
                reading.choices.append(Choice(i, blocks, tuple(votes[n].tolist())))
            n += 1
        layer.placed(reading.chosen[0][0] if layer.role.attends else ())
    memory.version += 1


def _with_lookups(kind: LayerKind, layer: LayerMemory, topk: int, block_size: int) -> LookupKind:
    own = kind.spec, kind.n_local, kind.pending, kind.mass_of, kind.far_angles
    if not isinstance(layer, FullLayer):
        return LookupKind(*own)
    role, most_rows = layer.role, layer.lookup.index.most_rows
    return LookupKind(*own, role.attends, role.looks_up, topk, block_size, most_rows)
