"""Conversations of tiny models that reach every part of the memory, to compare between devices."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from pretend_device import OnDevice, on_host, placed
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from longmem import Engine, MemoryConfig, Sampling
from longmem.memory import Gates, SessionMemory
from longmem.session import Session

SETTINGS: dict[str, Any] = {
    "n_init": 4,
    "n_local": 48,
    "block_size": 12,
    "topk": 3,
    "repr_topk": 3,
    "lookup_span": 24,
    "stride": 3,
}
_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
_KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "attn_logit_softcapping": 8.0,
        "query_pre_attn_scalar": 8,
    },
}


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """The bundled model's."""
    return Engine.nano(device="cpu").tokenizer


@cache
def tiny(
    kind: str = "llama", dtype: torch.dtype = torch.float32, head_dim: int = 8, layers: int = 3
) -> PreTrainedModel:
    """A random model on the CPU that reads the bundled model's tokens."""
    torch.manual_seed(3)
    shape = {**_SHAPE, "num_hidden_layers": layers, "head_dim": head_dim, **_KINDS[kind]}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": len(tokenizer())}
    config = CONFIG_MAPPING[kind](**shape, **ids)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()


def engine_of(
    config: MemoryConfig,
    kind: str = "llama",
    devices: dict[str, str] | None = None,
    gates: Gates | None = None,
    prepare: Callable[[PreTrainedModel], object] | None = None,
    **model: Any,
) -> Engine:
    """An engine over a copy of `tiny`: on the CPU, or placed as `pretend_device.placed` does."""
    copied = copy.deepcopy(tiny(kind, **model))
    if devices:
        placed(copied, devices)
    if prepare:
        prepare(copied)
    made = Engine(copied, tokenizer(), config)
    made.gates = gates
    return made


def open_gates(layers: int = 3, heads: int = 4) -> Gates:
    """Half open, in every layer."""
    return Gates(torch.full((layers, heads), 0.4), torch.full((layers, heads), -0.5))


def told(n: int) -> list[tuple[str, str]]:
    """n turns of the user's and the assistant's."""
    return [
        ("user" if i % 2 == 0 else "assistant", f"Item {i} of {i * 7 % 13} is {i % 5} metres long.")
        for i in range(n)
    ]


def state(memory: SessionMemory) -> list[torch.Tensor]:
    """What later results depend on, on the host."""
    held = []
    for layer in memory.layers:
        held += [layer.local.raw, layer.local.rot, layer.local.v, layer.local.mass]
        if layer.compressive is not None:
            held += [layer.compressive.state.M, layer.compressive.state.z]
    for full in memory.full_layers:
        held += [*full.working_set.initial, full.working_set.k, full.lookup.index.rows.keys]
    return [part.clone() for part in on_host(held)]


def talk(session: Session, sampling: Sampling) -> list[Any]:
    """Tell, ask, stream, drop an exchange, recall: all texts, and the state at the end."""
    session.add(told(10))
    said: list[Any] = [session.ask("What is item 3?", sampling=sampling).text]
    session.ask("Forget this.", sampling=sampling, commit=False)
    with session.stream("And item 5?", sampling=sampling) as stream:
        said.append("".join(stream))
    memory = session._conversation.memory
    assert memory is not None and (memory.n_blocks > 4 or memory.config.window == "segment")
    return [*said, *state(memory)]


def assert_same(one: list[Any], other: list[Any]) -> None:
    """The same texts, and states to rounding."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        if isinstance(a, torch.Tensor):
            assert not isinstance(a, OnDevice) and not isinstance(b, OnDevice)
            torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
        else:
            assert a == b
