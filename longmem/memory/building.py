"""The layers of one session, as the model and the settings ask for."""

from __future__ import annotations

from collections.abc import Sequence

from longmem.codec import get_codec
from longmem.config import MemoryConfig
from longmem.memory.blocks import BlockTable
from longmem.memory.budget import TierBudget
from longmem.memory.coded_blocks import Coding
from longmem.memory.compressive import CompressiveMemory
from longmem.memory.full_layer import FullLayer
from longmem.memory.gates import Gates
from longmem.memory.groups import BlockGroups
from longmem.memory.layer import LayerMemory
from longmem.memory.placement import BlockTier
from longmem.memory.segment_layer import SegmentLayer
from longmem.memory.sliding_layer import SlidingLayer
from longmem.memory.spec import LayerSpec


def groups_of(config: MemoryConfig, table: BlockTable) -> BlockGroups | None:
    """The groups that the codec encodes together; None where blocks stay as they are."""
    codec = get_codec(config.codec)
    return BlockGroups(table, codec.group_tokens) if codec else None


def build_layers(
    specs: Sequence[LayerSpec],
    config: MemoryConfig,
    table: BlockTable,
    gates: Gates | None,
    budget: TierBudget,
    groups: BlockGroups | None,
) -> list[LayerMemory]:
    """One memory for each attention layer.

    Args:
        specs: the model's attention layers.
        config: the memory settings.
        table: where blocks end.
        gates: of the compressive memory; None leaves it closed.
        budget: the bytes of blocks, which the layers share.
        groups: the codec's; from `groups_of`.
    """
    codec = get_codec(config.codec)
    coding = Coding(codec, groups) if codec and groups else None
    layers: list[LayerMemory] = []
    for spec in specs:
        compressive = CompressiveMemory.of_layer(spec, config.compressive, gates, _chunk(config))
        if spec.sliding:
            layers.append(SlidingLayer(spec, compressive))
        elif config.window == "segment":
            layers.append(SegmentLayer(spec, config.n_local, compressive))
        else:
            tier = BlockTier(spec, config, table, budget, coding)
            full = FullLayer(spec, config, table, tier, compressive)
            full.lookup.index.max_bytes = budget.index
            layers.append(full)
    _connect([layer for layer in layers if isinstance(layer, FullLayer)])
    return layers


def _chunk(config: MemoryConfig) -> int:
    """Tokens that a compressive memory folds at once."""
    if config.window == "segment" or config.compressive is None:
        return config.n_local
    return config.compressive.chunk


def _connect(full: Sequence[FullLayer]) -> None:
    """Let layers know which others share their choices."""
    for layer in full:
        own = layer.spec.index
        layer.followers = [f for f in full if f.role.follows == own and not f.role.looks_up]
