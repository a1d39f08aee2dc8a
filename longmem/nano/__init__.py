"""The bundled tiny model: weights, tokenizer, model card, and the dialogues it was trained on."""

from __future__ import annotations

from pathlib import Path

from longmem.config import MemoryConfig


def path() -> Path:
    """The folder that holds nano's weights and tokenizer, ready for `from_pretrained`."""
    return Path(__file__).resolve().parent


def memory() -> MemoryConfig:
    """The memory settings nano was trained for and recalls best with (see the model card)."""
    return MemoryConfig(
        n_init=8,
        n_local=96,
        block_size=80,
        block_boundaries="turn",
        topk=2,
        repr_topk=40,
        lookup_layers=(2,),
        lookup_span=128,
        stride=32,
    )
