"""What a graph takes for granted of a session's layers."""

from __future__ import annotations

from dataclasses import dataclass, field

from longmem.memory import LayerSpec, SessionMemory
from longmem.memory.full_layer import FullLayer
from longmem.memory.layer import LayerMemory
from longmem.memory.sliding_layer import SlidingLayer
from longmem.ops.rotary import Angles
from longmem.ops.working_set_attention import MassOf


@dataclass(frozen=True)
class LayerKind:
    """What is the same of one layer in all sessions.

    Args:
        spec: the layer.
        n_local: its window in tokens.
        pending: whether tokens beyond the window are attended to.
        mass_of: what its attention sums count; None: it keeps none.
        far_angles: of position n_local; None where it does not rotate.
    """

    spec: LayerSpec
    n_local: int
    pending: bool
    mass_of: MassOf | None
    far_angles: Angles | None = field(compare=False)


def kinds_of(memory: SessionMemory) -> tuple[LayerKind, ...] | None:
    """The kinds of a session's layers; None if its steps cannot go through a graph: a layer takes no
    single tokens, changes more in a recycled step than the buffers that kernels write, lies on another
    device, or has another number of heads."""
    layers = memory.layers
    shapes = {(layer.spec.device, layer.spec.kv_heads) for layer in layers}
    if len(shapes) > 1 or not all(_serves(layer) for layer in layers):
        return None
    return tuple(
        LayerKind(
            layer.spec,
            layer.n_local,
            isinstance(layer, FullLayer),
            layer.mass_of,
            layer.far_angles,
        )
        for layer in layers
    )


def _serves(layer: LayerMemory) -> bool:
    known = isinstance(layer, FullLayer | SlidingLayer)
    return known and layer.takes_steps and layer.compressive is None and layer.spec.kernels
