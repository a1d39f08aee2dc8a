"""The same model in transformers' own hands: every key and value of the history, attended at each step.

Caches are filled with random keys and values: a step's time depends on how many there are, not on
which. `DynamicCache` appends by a concatenation, which copies the cache; `StaticCache` writes in
place and attends through a mask over all its room. The latter's step is also captured in a CUDA graph,
where it can be, so that the comparison is not with the time the host takes to launch kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from longmem.bench.dense import Dense
from longmem.bench.gpu.clock import each_ms
from longmem.engine import Engine

STEPS = 8
_WARM = 3
_SPARE = 4 * (STEPS + _WARM)
"""Room a static cache has for the steps that are measured."""


@dataclass(frozen=True)
class DenseTime:
    """One way to attend to everything, at one length.

    Args:
        history: tokens in the cache.
        way: cache and attention.
        ms: of each step; empty where it could not be run.
        why: it could not.
    """

    history: int
    way: str
    ms: tuple[float, ...]
    why: str = ""

    @property
    def median(self) -> float | None:
        """Of the steps."""
        return median(self.ms) if self.ms else None

    def row(self) -> dict[str, object]:
        """JSON-able."""
        return {**asdict(self), "median_ms": self.median}


def measure_dense(engine: Engine, tokens: int) -> list[DenseTime]:
    """Every way at one length, with the engine's own weights."""
    dense = Dense(engine)
    return list(_times(dense, tokens, engine.device))


def dense_bytes(engine: Engine, tokens: int) -> int:
    """Bytes of device memory it takes: the cache, and one layer's more while it is appended to."""
    whole = sum(spec.bytes_per_token for spec in engine.info.layers) * tokens
    layer = max(spec.bytes_per_token for spec in engine.info.layers) * tokens
    groups = max(spec.heads // spec.kv_heads for spec in engine.info.layers)
    return whole + layer * (1 + groups)  # a mask makes SDPA repeat keys for the heads of a group


def _times(dense: Dense, tokens: int, device: torch.device) -> Iterator[DenseTime]:
    cache = dense.history(tokens).cache
    for attention in _attentions():
        steps = _Steps(dense.model, cache, tokens, device, attention)
        yield _timed(tokens, f"DynamicCache, {attention}", device, steps.uncaptured)
    steps = _Steps(dense.model, _static(dense.model, cache, tokens), tokens, device, "sdpa")
    yield _timed(tokens, "StaticCache, sdpa", device, steps.uncaptured)
    if device.type == "cuda":
        yield _timed(tokens, "StaticCache, sdpa, CUDA graph", device, steps.captured)


def _timed(
    tokens: int, way: str, device: torch.device, make: Callable[[], Callable[[], object]]
) -> DenseTime:
    try:
        step = make()
        each_ms([step] * _WARM, device)
        return DenseTime(tokens, way, tuple(each_ms([step] * STEPS, device)))
    except (RuntimeError, ValueError, ImportError) as error:  # out of memory is a RuntimeError
        return DenseTime(tokens, way, (), f"{type(error).__name__}: {str(error).splitlines()[0]}")


class _Steps:
    """Greedy decode steps on one cache, the token of the last one kept on the device."""

    def __init__(
        self, model: PreTrainedModel, cache: Any, tokens: int, device: torch.device, attention: str
    ) -> None:
        self._model, self._cache, self._attention = model, cache, attention
        self._ids = torch.zeros(1, 1, dtype=torch.long, device=device)
        self._at = torch.full((1, 1), tokens, dtype=torch.long, device=device)

    @torch.no_grad()
    def run(self) -> Tensor:
        """Feed the last token; nothing waits for the device."""
        out = self._model(
            input_ids=self._ids,
            position_ids=self._at,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._ids.copy_(out.logits[:, -1:].argmax(-1))
        self._at.add_(1)
        return self._ids

    def uncaptured(self) -> Callable[[], int]:
        """A step that brings its token to the host, as a reply's do.

        Raises:
            ImportError, ValueError: this attention is not there, or not for this model.
        """
        self._model.set_attn_implementation(self._attention)
        return lambda: int(self.run().item())

    def captured(self) -> Callable[[], int]:
        """The same, with the model's part replayed from a CUDA graph."""
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch gives no types
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            self.run()

        def replayed() -> int:
            graph.replay()
            return int(self._ids.item())

        return replayed


def _static(model: PreTrainedModel, cache: DynamicCache, tokens: int) -> StaticCache:
    """A static cache with the first tokens of the other one, which is emptied layer by layer."""
    made = StaticCache(config=model.config, max_cache_len=tokens + _SPARE)
    for i, layer in enumerate(cache.layers):
        made.update(layer.keys[:, :, :tokens], layer.values[:, :, :tokens], i)
        layer.keys = layer.values = None
    return made


def _attentions() -> Sequence[str]:
    return ("sdpa", "flash_attention_2") if find_spec("flash_attn") else ("sdpa",)
