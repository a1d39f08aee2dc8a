"""What steps and look-ups move, in bytes, counted from shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from longmem.memory import SessionMemory
from longmem.memory.full_layer import FullLayer

if TYPE_CHECKING:
    from longmem.engine import Engine


@dataclass(frozen=True)
class LookupCosts:
    """Bytes moved by a decode step.

    Args:
        step: by every step: the weights, and the keys and values attended to.
        look_up: in addition by a step at which all layers look up: index rows scored, blocks
            fetched, and what a refresh attends to beyond `topk_tokens`.
    """

    step: int
    look_up: int


Costs = Callable[[], LookupCosts]
"""Counts when it is called: most policies never ask."""


def costs_of(engine: Engine, memory: SessionMemory) -> LookupCosts:
    """The costs of a reply that begins now.

    What is counted does not depend on where a block lies, on the device or only on disk, nor on how
    the session came to be: the text of a reply must not.
    """
    step, look_up = weight_bytes(engine.model), 0
    for layer in memory.layers:
        per_token = layer.spec.bytes_per_token
        if not isinstance(layer, FullLayer):
            step += len(layer.local) * per_token
            continue
        fetched, most = _fetched(layer, memory), memory.config.topk_tokens
        initial = layer.table.n_init if layer.closed >= 0 else 0
        attended = initial + fetched + len(layer.local)
        recycled = attended if most is None else min(most, attended)
        step += recycled * per_token
        look_up += (attended - recycled) * per_token
        if memory.config.lookup != "all":  # there, blocks once fetched stay
            look_up += fetched * per_token + _scored(layer)
    return LookupCosts(step, look_up)


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that one token's forward pass reads: all but the input embeddings, unless
    they are the output's, too, and of experts those that a token is sent to."""
    config = model.config.get_text_config()
    used = getattr(config, "num_experts_per_tok", None)
    there = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    share = used / there if used and there else 1.0
    output = model.get_output_embeddings().weight
    skipped = model.get_input_embeddings().weight
    total = 0
    for name, weight in model.named_parameters():
        if weight is not skipped or weight is output:
            total += int(weight.nbytes * (share if ".experts." in name else 1.0))
    return total


def _fetched(layer: FullLayer, memory: SessionMemory) -> int:
    """Most tokens of blocks that a look-up lets a layer attend to."""
    config, edges = memory.config, memory.table.edges
    if layer.closed <= layer.first or not layer.role.attends:
        return 0
    closed = edges[layer.closed] - edges[layer.first]
    if config.lookup == "all":
        return closed
    return min((config.topk + config.contiguity) * config.block_size, closed)


def _scored(layer: FullLayer) -> int:
    """Bytes of index rows that a layer scores in a look-up."""
    return layer.lookup.row_bytes if layer.role.indexed else 0
