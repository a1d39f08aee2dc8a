"""What a full-attention layer has to do with blocks."""

from __future__ import annotations

from dataclasses import dataclass

from longmem.config import MemoryConfig
from longmem.memory.spec import LayerSpec


@dataclass(frozen=True)
class LayerRole:
    """The part one layer plays in look-ups.

    Args:
        reached: a look-up could reach it, in this layer or one below it; also with topk = 0, which a
            later process may raise.
        indexed: representatives are kept; also with topk = 0.
        attends: it attends to blocks: its own choice, that of a layer below it, or all.
        takes_all: at a refresh it attends to all blocks.
        looks_up: it chooses blocks by its own queries.
        follows: the look-up layer whose choices it shares; None if there is none below it.
    """

    reached: bool
    indexed: bool
    attends: bool
    takes_all: bool
    looks_up: bool
    follows: int | None

    @classmethod
    def of(cls, spec: LayerSpec, config: MemoryConfig) -> LayerRole:
        """The role of a layer under these settings."""
        lookup = config.lookup_layers
        reached = spec.sliding is None and (lookup == "all" or spec.index >= lookup[0])
        takes_all = reached and config.lookup == "all"
        indexed = lookup == "all" or spec.index in lookup
        below = [] if lookup == "all" or not config.topk else [x for x in lookup if x < spec.index]
        return cls(
            reached=reached,
            indexed=indexed,
            attends=takes_all or (reached and config.topk > 0),
            takes_all=takes_all,
            looks_up=indexed and config.topk > 0 and not takes_all,
            follows=max(below, default=None),
        )
