"""Whether model, tokenizer, device and memory settings fit each other."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from longmem.attention import ModelInfo
from longmem.chat import ChatFormat
from longmem.config import MemoryConfig
from longmem.errors import ChatFormatError, ConfigError, TurnTooLargeError, UnsupportedModelError
from longmem.memory.role import LayerRole
from longmem.recycling import get_policy
from longmem.retrieval import get_scorer

_LEAST_VOCABULARY = 0.8
"""Embeddings are padded to round numbers, but not by more than a fifth."""


def chat_format(tokenizer: PreTrainedTokenizerBase, config: MemoryConfig) -> ChatFormat:
    """The tokenizer's chat format.

    Raises:
        ChatFormatError: it cannot be rendered turn by turn, or asks for no reply.
    """
    chat = ChatFormat.from_tokenizer(tokenizer, keep_reasoning=config.keep_reasoning)
    if not chat.reply_header_ids():
        raise ChatFormatError(
            "this chat template has no text that asks for a reply, which the first look-up of a "
            "reply needs; give the tokenizer a template with a generation prompt"
        )
    return chat


def initial_tokens(config: MemoryConfig, session: str, role: str, n_tokens: int) -> int:
    """Initial tokens of a session whose first turn is of `role` and has `n_tokens` tokens.

    Raises:
        TurnTooLargeError: a system turn above max_init.
    """
    if role != "system":
        return config.n_init
    if n_tokens > config.max_init:
        raise TurnTooLargeError(
            f"session {session!r}: the system turn has {n_tokens} tokens, above max_init = "
            f"{config.max_init}; shorten it, or raise MemoryConfig.max_init"
        )
    return max(config.n_init, n_tokens)


def usable_device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device {str(name)!r} cannot be used: {reason}; choose another, for instance "
            'device="cpu"'
        ) from error
    return device


def default_memory(max_positions: int) -> MemoryConfig:
    """`MemoryConfig()` for models whose trained positions are fewer than its window."""
    default = MemoryConfig()
    n_local = min(default.n_local, max(1, max_positions // 2))
    return default.replace(
        n_local=n_local,
        n_init=min(default.n_init, n_local),
        block_size=min(default.block_size, max(1, n_local // 4)),
    )


def check_fit(config: MemoryConfig, info: ModelInfo) -> None:
    """Refuse settings that this model cannot work with.

    Raises:
        ConfigError: names the setting.
        UnsupportedModelError: no layer attends beyond a window of its own.
    """
    max_positions = info.max_positions
    full = [spec.index for spec in info.layers if spec.sliding is None]
    if not full:
        raise UnsupportedModelError(
            "all layers of this model have a sliding window of their own, so that none could attend "
            "to what is older; use a model with full attention in some layers"
        )
    if config.n_local > max_positions:
        raise ConfigError(
            f"n_local is {config.n_local}, but the model was trained on {max_positions} positions; "
            f"choose n_local <= {max_positions}, and with it smaller n_init, block_size and topk (for a "
            "preset: MemoryConfig.preset(name, n_local=...))"
        )
    blocks = config.topk + config.contiguity
    reach = config.n_local + max(blocks - 1, 0) * config.block_size
    if config.far_positions == "ordered" and reach > max_positions:
        raise ConfigError(
            f'far_positions="ordered" needs n_local + (topk + contiguity - 1) * block_size = {reach} '
            f"positions, but the model was trained on {max_positions}; lower topk, block_size or n_local"
        )
    if config.lookup_layers != "all" and not set(config.lookup_layers) <= set(full):
        raise ConfigError(
            f"lookup_layers is {config.lookup_layers}, but the model's layers with full attention "
            f"are {full}"
        )
    _check_slots(config, info)
    get_scorer(config.scorer)
    get_policy(config.recycling)


def _check_slots(config: MemoryConfig, info: ModelInfo) -> None:
    """Refuse a device budget that is there, but cannot hold the blocks of one look-up."""
    roles = {spec: LayerRole.of(spec, config) for spec in info.layers}
    served = [spec for spec, role in roles.items() if role.attends and not role.takes_all]
    if not config.device_bytes or not served:
        return
    choices = max(spec.kv_heads for spec in served) if config.selection == "kv_head" else 1
    blocks = choices * (config.topk + config.contiguity)
    largest = max(spec.bytes_per_token for spec in served)
    need = blocks * config.block_size * largest * len(served)
    if config.device_bytes < need:
        raise ConfigError(
            f"device_bytes is {config.device_bytes:,}, but the {blocks} blocks of one look-up take "
            f"{need:,} bytes in the {len(served)} layers that attend to them; raise it, or set 0 for "
            "no block slots on the device"
        )


def check_weights(model: PreTrainedModel) -> None:
    """Refuse a model that would answer every turn with NaN.

    Raises:
        UnsupportedModelError: names the tensor.
    """
    for name, tensor in model.named_parameters():
        if tensor.is_meta or bool(tensor.sum(dtype=torch.float32).isfinite()):
            continue
        if not bool(tensor.isfinite().all()):
            raise UnsupportedModelError(
                f"the model's weight {name!r} holds NaN or infinity; load the checkpoint again, or "
                "train it with a smaller learning rate"
            )


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer of another model mostly shows by ids the embedding does not have."""
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows or len(tokenizer) < _LEAST_VOCABULARY * rows:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model's embedding {rows} rows; "
            "load the tokenizer that belongs to the model"
        )
