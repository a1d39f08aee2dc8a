"""Which layers keep their gates: those that make the model better on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.memory import Gates


@dataclass(frozen=True, eq=False)
class Kept:
    """What was tried, in nats per token of held-out text.

    Args:
        gates: the best there was; all closed where none was better than that.
        layers: the layers that stay open.
        closed: loss with all gates closed.
        all_open: loss with all layers open.
        alone: loss with one layer open, for each that has an open gate.
        loss: of `gates`; never above `closed`.
    """

    gates: Gates
    layers: tuple[int, ...]
    closed: float
    all_open: float
    alone: dict[int, float]
    loss: float


def keep_what_helps(gates: Gates, loss: Callable[[Gates], float]) -> Kept:
    """Try all layers, each alone, and those together that help alone; keep the best.

    A gate that brings a layer's output nearer to full attention may still hurt the model: layers
    were measured one by one, on shorter contexts than a stream has.

    Args:
        gates: as calibrated.
        loss: held-out loss under given gates.
    """
    candidates = open_layers(gates)
    closed = loss(with_layers(gates, ()))
    if not candidates:
        return Kept(with_layers(gates, ()), (), closed, closed, {}, closed)
    alone = {layer: loss(with_layers(gates, (layer,))) for layer in candidates}
    found: dict[tuple[int, ...], float] = {(): closed} | {(i,): each for i, each in alone.items()}
    helping = tuple(i for i, each in alone.items() if each < closed)
    for together in (helping, candidates):
        if together not in found:
            found[together] = loss(with_layers(gates, together))
    best = min(found, key=lambda layers: (found[layers], len(layers)))
    return Kept(with_layers(gates, best), best, closed, found[candidates], alone, found[best])


def open_layers(gates: Gates) -> tuple[int, ...]:
    """The layers with a head that listens."""
    heads = open_heads(gates)
    return tuple(i for i in range(len(heads)) if bool(heads[i].any()))


def with_layers(gates: Gates, layers: Collection[int]) -> Gates:
    """The same gates, closed in all other layers."""
    kept = torch.zeros(len(gates.gate), 1, dtype=torch.bool)
    kept[list(layers)] = True
    offset = None if gates.offset is None else gates.offset.where(kept, -torch.inf)
    return Gates(gates.gate * kept, offset, gates.decay, gates.features)


def open_heads(gates: Gates) -> Tensor:
    """``[L, H]`` bool: which heads listen."""
    return gates.gate > 0 if gates.offset is None else ~torch.isneginf(gates.offset)
