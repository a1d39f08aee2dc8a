"""The compressive memory: a segment folded, read and folded, and mixed into attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from longmem.bench.kernels.case import Case
from longmem.bench.kernels.drawing import ROUNDING, SUMS, Draw, apart, by_definition
from longmem.bench.kernels.size import Size
from longmem.bench.kernels.spoiling import spoilt
from longmem.ops.compressive import (
    CompressiveState,
    FeatureMap,
    Rule,
    chunked,
    get_feature_map,
    launched,
    read_and_fold_naive,
)

_USES: tuple[tuple[str, Rule], ...] = (("elu", "linear"), ("dpfp", "delta"))
_PREFIX = 128
"""Tokens of the first chunk, which is folded before anything is measured."""


def cases(size: Size, dim: int, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """Both rules, each with the feature map that it goes with, over a segment and for single tokens."""
    for name, rule in _USES:
        features, draw = get_feature_map(name), Draw(dtype, device)
        k, v = draw(size.kv_heads, size.segment, dim), draw(size.kv_heads, size.segment, dim)
        q = draw(size.heads, size.segment, dim)
        state = CompressiveState.empty(size.kv_heads, features.width(dim), dim, device)
        chunked.update(state, features(k[:, :_PREFIX]), v[:, :_PREFIX], rule)
        yield _folded(name, rule, features, state, k, v)
        yield _read(name, rule, features, state, q, k, v, by_definition(size))
        yield _mixed(f"{name}, {rule}: mixed in", "mix", rule, features, state, q)
        yield _mixed(f"{name}, {rule}: one token", "mix_step", rule, features, state, q[:, :1])


def _folded(
    name: str, rule: Rule, features: FeatureMap, state: CompressiveState, k: Tensor, v: Tensor
) -> Case:
    chunk = _chunk(rule, k.shape[1])
    whole = k.shape[1] // chunk * chunk
    k, v = k[:, :whole], v[:, :whole]

    def run() -> CompressiveState:
        after = state.clone()
        launched.fold(k, v, after, features, chunk=chunk, rule=rule)
        return after

    def error() -> float:
        expected = state.clone()
        with spoilt():
            after = run()
        chunked.fold(k, v, expected, features, chunk=chunk, rule=rule)
        return max(apart(after.M, expected.M, SUMS), apart(after.z, expected.z, SUMS))

    kernel = "fold" if rule == "linear" else "walk"
    passes = 1 if rule == "linear" else 2
    return Case(
        "compressive", f"{name}, {rule}: folded", (kernel,), f"{whole} tokens, chunks of {chunk}",
        k.shape[2], 2 * (k.nbytes + state.M.nbytes + state.z.nbytes),
        2 * passes * whole * state.M.numel(), run, error,
    )  # fmt: skip


def _read(
    name: str, rule: Rule, features: FeatureMap, state: CompressiveState, q: Tensor, k: Tensor, v: Tensor,
    naive: bool,
) -> Case:  # fmt: skip
    chunk = _chunk(rule, k.shape[1])

    def run() -> tuple[Tensor, ...]:
        after = state.clone()
        read = launched.read_and_fold(q, k, v, after, features, chunk=chunk, rule=rule)
        return *read, after.M, after.z

    def error() -> float:
        with spoilt():
            done = run()
        where = "cpu" if naive else q.device
        after = CompressiveState(state.M.to(where), state.z.to(where), state.tokens)
        twin = read_and_fold_naive if naive else chunked.read_and_fold
        rows = (q.to(where), k.to(where), v.to(where))
        read = twin(*rows, after, features, chunk=chunk, rule=rule)
        pairs = zip(done, (*read, after.M, after.z), strict=True)
        return max(apart(got, expected, SUMS) for got, expected in pairs)

    passes = 1 if rule == "linear" else 2
    reads = 2 * q.shape[0] * q.shape[1] * state.M[0].numel()
    return Case(
        "compressive", f"{name}, {rule}: read and folded", ("walk",),
        f"{k.shape[1]} tokens, chunks of {chunk}", k.shape[2],
        q.nbytes + 2 * k.nbytes + 4 * q.numel() + 2 * state.M.nbytes,
        reads + 2 * passes * k.shape[1] * state.M.numel(), run, error,
    )  # fmt: skip


def _mixed(
    name: str, kernel: str, rule: Rule, features: FeatureMap, state: CompressiveState, q: Tensor
) -> Case:
    heads, n, dim = q.shape
    out, lse = q.flip(2).contiguous(), q.float().mean(2)
    gate = torch.linspace(-1, 1, heads, device=q.device)

    def run() -> Tensor:
        return launched.mix(out, q, lse, state, features, rule, gate)

    def error() -> float:
        expected = chunked.mix(out, q, lse, state, features, rule, gate)
        with spoilt():
            got = run()
        return apart(got, expected, ROUNDING[q.dtype])

    return Case(
        "compressive", name, (kernel,), f"{n} tokens", dim, 3 * q.nbytes + state.M.nbytes,
        2 * heads * n * state.M[0].numel(), run, error,
    )  # fmt: skip


def _chunk(rule: Rule, tokens: int) -> int:
    """Tokens folded at once: the settings' default, or what the delta rule is for; fewer for few."""
    return min(128 if rule == "linear" else 16, max(tokens // 2, 1))
