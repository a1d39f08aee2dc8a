"""The compressive memory's kernels over tensors; `kernel.py` is imported when one is first launched."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from longmem.ops.compressive.features import Dpfp, EluPlusOne, FeatureMap
from longmem.ops.compressive.state import RULES, CompressiveState, Rule
from longmem.ops.kernels import Launch, kernels_serve, launch, launch_of

OP = "compressive"
FEW = 32
"""Queries of a group, up to which mixing takes the launch for decode steps."""


class Mapped(NamedTuple):
    """Rows that a kernel can turn into features.

    Args:
        rows: ``[H, T, D]``, or features ``[H, T, F]`` float32, rows of adjacent values.
        map: how, as `tiles.py` numbers them.
        width: F.
    """

    rows: Tensor
    map: int
    width: int


def served(state: CompressiveState, features: FeatureMap, *tensors: Tensor) -> bool:
    """Whether the kernels compute this: no gradients, no batch, a feature map that fits their tiles.

    Args:
        state: the memory.
        features: the feature map.
        tensors: queries, keys, values ``[H, T, D]``.
    """
    first, dim = tensors[0], state.M.shape[-1]
    if state.M.dim() != 3 or features.width(dim) % dim:
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, state.M)):
        return False
    alike = all(t.dtype == first.dtype and t.shape[-1] == dim for t in tensors)
    return alike and kernels_serve(first.device, first.dtype, dim)


def mix(
    out: Tensor,
    q: Tensor,
    lse: Tensor | None,
    state: CompressiveState,
    features: FeatureMap,
    rule: Rule,
    gate: Tensor,
) -> Tensor:
    """As `chunked.mix`."""
    from longmem.ops.compressive.kernel import mix_kernel

    (heads, n, dim), kv_heads = q.shape, state.M.shape[0]
    group, x, out = heads // kv_heads, _mapped(q, features), _rowwise(out)
    mixed = torch.empty_like(out)
    how = launch_of(OP, "mix_step" if group * n <= FEW else "mix", dim)
    grid = (-(-group * n // how.blocks["BLOCK_R"]), kv_heads, -(-dim // how.blocks["BLOCK_N"]))
    near = lse if lse is None else lse.float()
    launch(
        mix_kernel, grid, q.device, how,
        out, x.rows, near, state.M.contiguous(), state.z.contiguous(), gate, mixed,
        n, *x.rows.stride()[:2], *out.stride()[:2], *(near.stride() if near is not None else (0, 0)),
        *mixed.stride()[:2], MAP=x.map, RULE=RULES.index(rule), BY_LSE=near is not None, GROUP=group,
        DIM=dim, WIDTH=x.width,
    )  # fmt: skip
    return mixed


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
    """As `chunked.fold`."""
    none = k.new_empty(k.shape[0], 0, k.shape[-1])
    _walk(none, k, v, state, features, chunk, rule, decay)


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
    """As `chunked.read_and_fold`."""
    return _walk(q, k, v, state, features, chunk, rule, decay)


def _walk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: CompressiveState,
    features: FeatureMap,
    chunk: int,
    rule: Rule,
    decay: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """Launch `kernel.walk_kernel`; without queries where q has no tokens."""
    from longmem.ops.compressive.kernel import walk_kernel

    (kv_heads, n, dim), reads = k.shape, q.shape[1] > 0
    how, splits = _how(dim, features.width(dim), rule, reads)
    tiles = -(-dim // how.blocks["BLOCK_N"])
    queries, keys, v = _mapped(q, features), _mapped(k, features), _rowwise(v)
    M, z = state.M.contiguous(), state.z.contiguous()
    new_M, new_z = torch.empty_like(M), torch.empty_like(z)
    coupled = rule != "linear"
    held, mass = M.new_empty(*q.shape[:2], dim), M.new_empty(q.shape[:2])
    by_head = decay.float().contiguous() if isinstance(decay, Tensor) else None
    launch(
        walk_kernel, (tiles, kv_heads, splits), k.device, how,
        queries.rows, keys.rows, v, M, z, new_M, new_z, z.new_empty(max(tiles - 1, 1), *z.shape), held, mass,
        M.new_empty(kv_heads, chunk, dim) if coupled else None,
        M.new_empty(tiles, kv_heads, chunk) if coupled else None,
        by_head, 1.0 if by_head is not None else decay,
        n, q.shape[1], chunk, *queries.rows.stride()[:2], *keys.rows.stride()[:2], *v.stride()[:2],
        MAP=keys.map, RULE=RULES.index(rule), READS=reads, GROUP=q.shape[0] // kv_heads,
        DIM=dim, WIDTH=keys.width, SPLITS=splits,
    )  # fmt: skip
    if n >= chunk:
        state.M, state.z = new_M, new_z
        state.tokens += n // chunk * chunk
    return held, mass


def _how(dim: int, width: int, rule: Rule, reads: bool) -> tuple[Launch, int]:
    """How the walk is launched, and among how many programs the rows of M are split."""
    if rule != "linear" or reads:
        return launch_of(OP, "walk", dim), 1
    how = launch_of(OP, "fold", dim)
    return replace(how, blocks={**how.blocks, "BLOCK_R": 16}), width // how.blocks["BLOCK_F"]


def _mapped(x: Tensor, features: FeatureMap) -> Mapped:
    """Rows ``[H, T, D]`` as a kernel takes them; features it does not know are computed here."""
    from longmem.ops.compressive.tiles import DPFP, ELU, GIVEN

    width = features.width(x.shape[-1])
    if isinstance(features, EluPlusOne):
        return Mapped(_rowwise(x), ELU.value, width)
    if isinstance(features, Dpfp):
        return Mapped(_rowwise(x), DPFP.value, width)
    return Mapped(features(x).contiguous(), GIVEN.value, width)


def _rowwise(x: Tensor) -> Tensor:
    """With the D values of each row side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
