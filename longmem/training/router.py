"""Where a model's attention goes while it is trained: its own segment, and the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.memory import AttentionCall, LayerSpec
from longmem.ops.compressive import EPS, CompressiveState, FeatureMap, Rule, read_and_fold, update
from longmem.training.local import segment_attention
from longmem.training.state import RecurrentState


class SegmentRouter:
    """One forward pass over whole segments, and perhaps the start of one more.

    Because a layer's memory depends only on that layer's earlier keys and values, all segments of a
    pass go through the model at once; only M and z follow one another.

    Args:
        specs: the layers.
        maps: their feature maps.
        gate: ``[L, H]`` in [0, 1], share of the memory in a head's output (equation 10).
        state: memories before the pass; they are left as they are.
        segment: tokens of a segment.
        rule: how memories are updated.
        repeats: how many times what this pass reads counts as read, see `SegmentRecurrent.forward`.
    """

    def __init__(
        self,
        specs: tuple[LayerSpec, ...],
        maps: tuple[FeatureMap, ...],
        gate: Tensor,
        state: RecurrentState,
        segment: int,
        rule: Rule,
        repeats: int = 1,
    ) -> None:
        self.state = state.clone()
        self._specs, self._maps, self._gate = specs, maps, gate
        self._segment, self._rule, self._repeats = segment, rule, repeats

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """``[B, H, T, D]``, ``[B, H_kv, T, D]`` twice, un-rotated -> ``[B, T, H, D]``."""
        near = segment_attention(q, k, v, self._specs[layer].rotary, self._segment, call)
        memory, features = self.state.layers[layer], self._maps[layer]
        before = memory.clone()
        held, mass = read_and_fold(q, k, v, memory, features, chunk=self._segment, rule=self._rule)
        if self._repeats > 1:
            self._read_again(before, memory, features, k, v)
        value = (held / mass.clamp(min=EPS)[..., None]).to(near.dtype)
        out = torch.lerp(near, value, self._gate[layer].to(near.dtype)[:, None, None])
        if before.tokens == 0:  # nothing to mix with, and zeros would only weaken the segment
            first = self._segment
            out = torch.cat((near[:, :, :first], out[:, :, first:]), 2)
        return out.transpose(1, 2)

    def _read_again(
        self,
        before: CompressiveState,
        memory: CompressiveState,
        features: FeatureMap,
        k: Tensor,
        v: Tensor,
    ) -> None:
        """Fold what was folded `repeats` - 1 times more."""
        more, folded = self._repeats - 1, memory.tokens - before.tokens
        if self._rule == "linear":
            memory.M = memory.M + more * (memory.M - before.M)
            memory.z = memory.z + more * (memory.z - before.z)
        else:
            phi = features(k[:, :, :folded])
            for times in _steps(more, doubling=self._rule == "delta_literal"):
                for start in range(0, folded, self._segment):
                    part = slice(start, start + self._segment)
                    update(memory, times * phi[:, :, part], v[:, :, part], self._rule)
        memory.tokens = before.tokens + self._repeats * folded


def _steps(more: int, doubling: bool) -> list[int]:
    """Numbers that sum up to `more`: ones, or each at most the sum of those before and 1. With the z of
    the paper a fold of weight w changes M by a share of at most w / (times read before), so that
    doubling stays stable, and follows the single steps closely."""
    if not doubling:
        return [1] * more
    steps: list[int] = []
    while more:
        steps.append(min(more, 1 + sum(steps)))
        more -= steps[-1]
    return steps
