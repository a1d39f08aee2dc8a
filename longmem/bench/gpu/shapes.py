"""The models that are measured: their sizes and settings. No weights are downloaded; they are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longmem.bench.kernels.size import TARGET, TINY, Size
from longmem.config import MemoryConfig
from longmem.errors import ConfigError

KIB = 1024
"""Tokens that "8K" stands for a multiple of."""


@dataclass(frozen=True)
class Shape:
    """One model, its memory, and how much of everything is measured.

    Args:
        name: as `--shape` has it.
        about: what it is, for the report.
        model: fields of transformers' ``LlamaConfig``.
        memory: the settings; codec and budgets are chosen for each history.
        size: sizes of the ops' cases.
        dims: head dimensions D at which ops are checked.
        lengths: tokens of history, by default.
        dense_up_to: the longest that transformers' own caches are measured at.
        segments: tokens of a forward pass that are tried for reading.
        session_history: tokens that each of many sessions has read.
        sessions: how many at once, by default.
        rounds: of `stride` steps each, at every length.
        reply_tokens: of the reply that is decoded.
        stretch: most tokens of history whose reading is timed at once.
        copy_bytes, matrix: what bandwidth and matrix rate are measured with.
    """

    name: str
    about: str
    model: Mapping[str, Any]
    memory: MemoryConfig
    size: Size
    dims: tuple[int, ...]
    lengths: tuple[int, ...]
    dense_up_to: int
    segments: tuple[int, ...]
    session_history: int
    sessions: tuple[int, ...]
    rounds: int
    reply_tokens: int
    stretch: int
    copy_bytes: int
    matrix: int

    @property
    def dim(self) -> int:
        """D."""
        return int(self.model["head_dim"])


EIGHT_B = Shape(
    name="8b",
    about="Llama-3.1-8B's shape, random weights",
    model={
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "initializer_range": 0.02,
    },
    memory=MemoryConfig(block_boundaries="fixed", host_bytes=2**50, two_level_above=None),
    size=TARGET,
    dims=(64, 80, 96, 128, 256),
    lengths=tuple(n * KIB for n in (8, 64, 128, 256, 512, 1024)),
    dense_up_to=512 * KIB,
    segments=(1024, 2048, 4096),
    session_history=8 * KIB,
    sessions=(1, 2, 4, 8, 16, 32, 64),
    rounds=12,
    reply_tokens=128,
    stretch=64 * KIB,
    copy_bytes=4 << 30,
    matrix=8192,
)
"""What the aims are set for."""

TINY_SHAPE = Shape(
    name="tiny",
    about="a toy of two layers, to see that everything runs",
    model={
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 2560,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        "initializer_range": 0.1,
    },
    memory=MemoryConfig(
        n_init=2,
        n_local=16,
        block_size=8,
        block_boundaries="fixed",
        topk=2,
        repr_topk=4,
        lookup_span=32,
        stride=2,
        device_bytes=2**14,
        host_bytes=2**50,
    ),
    size=TINY,
    dims=(64,),
    lengths=(64, 96),
    dense_up_to=96,
    segments=(64,),
    session_history=48,
    sessions=(1, 2),
    rounds=1,
    reply_tokens=2,
    stretch=64,
    copy_bytes=1 << 20,
    matrix=128,
)
"""Runs on a CPU in Triton's interpreter, too, where its times mean nothing."""

_SHAPES = {shape.name: shape for shape in (EIGHT_B, TINY_SHAPE)}


def shape_of(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in _SHAPES:
        raise ConfigError(f"no shape is called {name!r}; choose one of {', '.join(_SHAPES)}")
    return _SHAPES[name]
