"""A history of random tokens, read for real, stretch by stretch."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch

from longmem.bench.gpu.clock import once_ms
from longmem.bench.gpu.model import random_ids
from longmem.bench.gpu.shapes import Shape
from longmem.codec import get_codec
from longmem.engine import Engine
from longmem.feeding import Segment
from longmem.memory import LayerSpec

_COMMIT = 16 * 1024
"""Tokens read between two commits."""
CODECS = ("exact", "int8", "int4")
"""From the widest to the narrowest."""


@dataclass(frozen=True)
class Stretch:
    """Tokens ``start .. stop`` of a history, and the milliseconds it took to read them."""

    start: int
    stop: int
    ms: float

    @property
    def tokens_per_s(self) -> float:
        """Its speed."""
        return 1000 * (self.stop - self.start) / self.ms

    def row(self) -> dict[str, object]:
        """JSON-able."""
        return {**asdict(self), "tokens_per_s": self.tokens_per_s}


class History:
    """One session's memory without a store: what leaves the device stays in host memory.

    Args:
        engine: reads; its settings name the codec.
        shape: says how many tokens are read at once, and of which ids.
        seed: of the ids.
    """

    def __init__(self, engine: Engine, shape: Shape, seed: int = 0) -> None:
        self.engine, self.memory = engine, engine.new_memory()
        self._shape, self._seed = shape, seed

    @property
    def tokens(self) -> int:
        """Tokens read so far."""
        return self.memory.n_tokens

    def read_to(self, tokens: int) -> Iterator[Stretch]:
        """Read on until there are so many tokens."""
        while (start := self.tokens) < tokens:
            n = min(self._shape.stretch, tokens - start)
            segments = [
                self._segment(min(_COMMIT, n - at), start + at) for at in range(0, n, _COMMIT)
            ]
            ms = once_ms(partial(self._read, segments), self.engine.device)
            yield Stretch(start, self.tokens, ms)

    def _segment(self, n: int, start: int) -> Segment:
        ids = random_ids(self._shape, n, self._seed + start)
        return Segment(ids, self.engine.spans(n), starts_turn=False)

    def _read(self, segments: Sequence[Segment]) -> None:
        """Read, and let go on the way of what only a rewind would need, as commits do: under a codec
        the raw values of closed blocks."""
        for segment in segments:
            self.engine.read(self.memory, [segment])
            self.memory.exported()


@dataclass(frozen=True)
class Reach:
    """The lengths that one history is measured at, and the codec of its blocks."""

    codec: str
    lengths: tuple[int, ...]


def reaches(
    layers: Sequence[LayerSpec], lengths: Sequence[int], room: float, wanted: str
) -> tuple[list[Reach], list[int]]:
    """Which lengths are read under which codec, and those that fit under none.

    Args:
        layers: of the model.
        lengths: tokens, shortest first.
        room: bytes of host memory for one history.
        wanted: a codec, or "auto" for the widest that fits at each length.
    """
    choices = CODECS if wanted == "auto" else (wanted,)
    chosen: dict[str, list[int]] = {name: [] for name in choices}
    too_long: list[int] = []
    for n in lengths:
        fits = [name for name in choices if n * host_bytes_per_token(layers, name) <= room]
        (chosen[fits[0]] if fits else too_long).append(n)
    return [Reach(name, tuple(part)) for name, part in chosen.items() if part], too_long


def host_bytes_per_token(layers: Sequence[LayerSpec], codec: str) -> float:
    """Bytes of host memory that one token of a closed block takes in all layers."""
    raw = sum(spec.bytes_per_token for spec in layers if spec.sliding is None)
    coder = get_codec(codec)
    if coder is None:
        return raw
    spec, tokens = layers[0], max(coder.group_tokens, 1)
    payload = coder.encode(torch.randn(tokens, 2, spec.kv_heads, spec.dim).to(spec.dtype))
    return raw * payload.nbytes / (tokens * spec.bytes_per_token)


def let_go(device: torch.device) -> None:
    """Give back what nothing refers to any more: on the device, and pinned in host memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        empty = getattr(torch._C, "_host_emptyCache", None)
        if empty is not None:
            empty()
