"""The compressive memory of one layer: a fixed-size trace of everything that was folded into it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.config import Compressive
from longmem.memory.gates import Gates
from longmem.memory.spec import LayerSpec
from longmem.ops.compressive import (
    CompressiveState,
    FeatureMap,
    Learned,
    fold,
    get_feature_map,
    mix,
)


@dataclass(frozen=True, eq=False)
class CompressiveMark:
    """A copy of the memory, and of the tokens that wait to be folded ``[2, H_kv, n, D]``."""

    state: CompressiveState
    waiting: Tensor


class CompressiveMemory:
    """M ``[H_kv, F, D]`` and z ``[H_kv, F]`` of one layer, float32 (Infini-attention, arXiv
    2404.07143). Tokens wait until their chunk is whole, so that what is folded together does not
    depend on how the stream was read.

    Args:
        spec: the layer.
        config: rule, feature map, way to mix, decay, chunk.
        gates: of the model; a layer whose heads are all closed has no memory (see `of_layer`).
        chunk: tokens folded at once.
    """

    def __init__(self, spec: LayerSpec, config: Compressive, gates: Gates, chunk: int) -> None:
        self.spec, self.config = spec, config
        self._chunk = chunk
        share = gates.gate
        if config.mix == "lse":
            assert gates.offset is not None
            share = gates.offset
        self._gate = share[spec.index].to(spec.device, torch.float32)  # [H]
        self._decay: float | Tensor = config.decay
        if gates.decay is not None:
            self._decay = gates.decay[spec.index].to(spec.device, torch.float32)
        weight = gates.features.get(spec.index)
        self._features: FeatureMap = get_feature_map(
            config.feature_map, None if weight is None else weight.to(spec.device)
        )
        self.state = CompressiveState.empty(
            spec.kv_heads, self._features.width(spec.dim), spec.dim, spec.device
        )
        shape = (2, spec.kv_heads, chunk, spec.dim)
        self._waiting = torch.zeros(shape, dtype=spec.dtype, device=spec.device)
        self._n_waiting = 0

    @classmethod
    def of_layer(
        cls, spec: LayerSpec, config: Compressive | None, gates: Gates | None, chunk: int
    ) -> CompressiveMemory | None:
        """The memory of a layer; None where no head listens to it."""
        if config is None or gates is None:
            return None
        if config.mix == "lse":
            assert gates.offset is not None
            closed = bool(torch.isneginf(gates.offset[spec.index]).all())
        else:
            closed = not bool(gates.gate[spec.index].any())
        return None if closed else cls(spec, config, gates, chunk)

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self.state.M.nbytes + self.state.z.nbytes + self._waiting.nbytes

    @property
    def empty(self) -> bool:
        """Whether nothing has been folded yet."""
        return self.state.tokens == 0

    def fold(self, k: Tensor, v: Tensor) -> None:
        """Take in tokens in stream order: un-rotated keys and values ``[H_kv, n, D]``."""
        start = 0
        while start < k.shape[1]:
            whole = self._whole(k.shape[1] - start)
            if whole:
                self._fold(k[:, start : start + whole], v[:, start : start + whole])
                start += whole
                continue
            n = min(self._chunk - self._n_waiting, k.shape[1] - start)
            at = slice(self._n_waiting, self._n_waiting + n)
            self._waiting[0, :, at] = k[:, start : start + n]
            self._waiting[1, :, at] = v[:, start : start + n]
            self._n_waiting += n
            start += n
            if self._n_waiting == self._chunk:
                self._fold(*self._waiting)
                self._n_waiting = 0

    def mix(self, out: Tensor, q: Tensor, lse: Tensor | None) -> Tensor:
        """Join what the memory holds for queries with what they attended to exactly.

        Args:
            out: ``[H, T, D]`` attention output.
            q: ``[H, T, D]`` un-rotated queries.
            lse: ``[H, T]`` log of attention's denominator; needed for mix = "lse".

        Returns:
            ``[H, T, D]``; `out` itself while the memory is empty.
        """
        if self.empty:
            return out
        by_lse = self.config.mix == "lse"
        assert lse is not None or not by_lse
        near = lse if by_lse else None
        return mix(out, q, near, self.state, self._features, self.config.rule, self._gate)

    def mark(self) -> CompressiveMark:
        """The present state, to go back to."""
        return CompressiveMark(self.state.clone(), self._waiting[:, :, : self._n_waiting].clone())

    def rewind(self, mark: CompressiveMark) -> None:
        """Back to `mark`."""
        self.state.copy_(mark.state)
        self._n_waiting = mark.waiting.shape[2]
        self._waiting[:, :, : self._n_waiting] = mark.waiting

    def clear(self) -> None:
        """Forget everything."""
        self.state.clear()
        self._n_waiting = 0

    def _whole(self, n: int) -> int:
        """How many of the next n tokens are folded where they lie: whole chunks, by one launch. A
        product of torch may differ by a last bit with how its factors lie, so there they wait first."""
        waits = self._n_waiting > 0 or isinstance(self._features, Learned)
        return 0 if waits or not self.spec.kernels else n // self._chunk * self._chunk

    def _fold(self, k: Tensor, v: Tensor) -> None:
        """Whole chunks ``[H_kv, n, D]``."""
        rule, chunk = self.config.rule, self._chunk
        fold(k, v, self.state, self._features, chunk=chunk, rule=rule, decay=self._decay)
