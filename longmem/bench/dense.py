"""The alternative: the same model in transformers' own hands, which keeps and attends to everything.

Its `DynamicCache` is filled with random keys and values of the model's own shapes and dtype: the
time of a step depends on how many there are, not on which. Reading so long a history for real takes
time that grows with its square. Every step appends to the cache as transformers does it, by a
concatenation that copies it, and attends by scaled dot products (torch's SDPA).
"""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from longmem.engine import Engine
from longmem.memory import LayerSpec

_ROWS = 65_536


class Dense:
    """The engine's model with SDPA and a cache; it shares the weights with the engine's own.

    Args:
        engine: whose model is compared.
    """

    def __init__(self, engine: Engine) -> None:
        self.model = _twin(engine.model)
        self._layers = engine.info.layers
        self._device = engine.device

    def bytes_at(self, tokens: int) -> int:
        """Bytes of the keys and values of `tokens` tokens."""
        return sum(
            spec.bytes_per_token * min(tokens, spec.sliding or tokens) for spec in self._layers
        )

    @torch.no_grad()
    def history(self, tokens: int) -> DenseHistory:
        """A cache of `tokens` random tokens."""
        cache = DynamicCache(config=self.model.config)
        for spec in self._layers:
            k, v = (_random(spec, tokens, self._device) for _ in range(2))
            cache.update(k, v, spec.index)
        return DenseHistory(self.model, cache, tokens, self._device)


class DenseHistory:
    """One cache, and what it takes to go on from it. Every call makes it longer.

    Args:
        model: the model.
        cache: keys and values of `tokens` tokens.
    """

    def __init__(
        self, model: PreTrainedModel, cache: DynamicCache, tokens: int, device: torch.device
    ) -> None:
        self._model, self.cache, self.tokens = model, cache, tokens
        self._device = device

    def decode_ms(self, steps: int) -> float:
        """Milliseconds per token of `steps` greedy decode steps, the first of them left out."""
        ids, started = self._read(self._ids(1)), time.perf_counter()
        for _ in range(steps):
            ids = self._read(ids)
        return (time.perf_counter() - started) * 1000 / steps

    def read_seconds(self, tokens: int, segment: int) -> float:
        """Seconds to read `tokens` tokens in passes of `segment`."""
        sizes = [min(segment, tokens - at) for at in range(0, tokens, segment)]
        parts = [self._ids(size) for size in sizes]
        started = time.perf_counter()
        for part in parts:
            self._read(part)
        return time.perf_counter() - started

    @torch.no_grad()
    def _read(self, ids: Tensor) -> Tensor:
        """Feed ``[1, T]`` ids; the likeliest next one ``[1, 1]``, waited for."""
        n = ids.shape[1]
        at = torch.arange(self.tokens, self.tokens + n, device=self._device)
        out = self._model(
            input_ids=ids,
            position_ids=at[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.tokens += n
        best: Tensor = out.logits[:, -1:].argmax(-1)
        best.item()  # waits for the device
        return best

    def _ids(self, n: int) -> Tensor:
        size = self._model.get_input_embeddings().num_embeddings
        return torch.randint(0, size, (1, n), device=self._device)


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with the same tensors and an attention of its own."""
    shared = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    twin.set_attn_implementation("sdpa")
    return twin


def _random(spec: LayerSpec, tokens: int, device: torch.device) -> Tensor:
    """``[1, H_kv, n, D]``; a few rows over and over, as drawing them all would take minutes."""
    few = torch.randn(1, spec.kv_heads, min(tokens, _ROWS), spec.dim, device=device)
    times = -(-tokens // _ROWS)
    return few.to(spec.dtype).repeat(1, 1, times, 1)[:, :, :tokens].contiguous()
