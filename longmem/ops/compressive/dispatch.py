"""Kernels where they serve, matrix products of torch elsewhere.

`retrieve` and `update` take features that are there already, in float32, and have no kernel.
"""

from __future__ import annotations

from torch import Tensor

from longmem.ops.compressive import chunked, launched
from longmem.ops.compressive.features import FeatureMap
from longmem.ops.compressive.state import CompressiveState, Rule


def mix(
    out: Tensor,
    q: Tensor,
    lse: Tensor | None,
    state: CompressiveState,
    features: FeatureMap,
    rule: Rule,
    gate: Tensor,
) -> Tensor:
    """Join what the memory holds for queries with what they attended to exactly: see `chunked.mix`."""
    if launched.served(state, features, q, out):
        return launched.mix(out, q, lse, state, features, rule, gate)
    return chunked.mix(out, q, lse, state, features, rule, gate)


def fold(
    k: Tensor,
    v: Tensor,
    state: CompressiveState,
    features: FeatureMap,
    *,
    chunk: int,
    rule: Rule,
    decay: float | Tensor = 1.0,
) -> None:
    """Fold whole chunks one after the other: see `chunked.fold`."""
    way = launched if launched.served(state, features, k, v) else chunked
    way.fold(k, v, state, features, chunk=chunk, rule=rule, decay=decay)


def read_and_fold(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: CompressiveState,
    features: FeatureMap,
    *,
    chunk: int,
    rule: Rule,
    decay: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """Read the memory and fold whole chunks, chunk by chunk: see `chunked.read_and_fold`."""
    if launched.served(state, features, q, k, v):
        return launched.read_and_fold(q, k, v, state, features, chunk=chunk, rule=rule, decay=decay)
    return chunked.read_and_fold(q, k, v, state, features, chunk=chunk, rule=rule, decay=decay)
