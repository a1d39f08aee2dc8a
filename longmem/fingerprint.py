"""What stored keys and values depend on, as named hashes: compared whenever a session is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longmem.config import MemoryConfig
from longmem.errors import FingerprintMismatchError
from longmem.memory import LayerSpec
from longmem.model_devices import values_of

_MOST_SAMPLES = 1 << 16
_STORED_SETTINGS = (
    "block_size",
    "block_boundaries",
    "n_init",
    "n_local",
    "repr_topk",
    "lookup_layers",
    "keep_reasoning",
)
_LATER_SETTINGS = (
    "min_block",
    "surprise_gamma",
    "surprise_window",
    "refine",
    "window",
    "repr_by",
    "codec",
)
"""Left out while at their defaults, so that sessions written before they existed stay readable."""
_ADVICE = (
    "Load the model it was written with, or open it with rebuild=True: its turns are kept and read "
    "again, nothing is lost"
)


def fingerprint(
    model: nn.Module,
    tokenizer: Any,
    config: MemoryConfig,
    layers: Sequence[LayerSpec],
    template: str,
) -> dict[str, str]:
    """The parts of a session's identity: name -> readable value or hash.

    Args:
        model: its weights are sampled, every tensor of them.
        tokenizer: a transformers tokenizer.
        config: of its settings, those that decide what is stored.
        layers: what was measured on the model, rotation tables included.
        template: identity of the chat format.
    """
    settings = {name: getattr(config, name) for name in _STORED_SETTINGS}
    for name in _LATER_SETTINGS:
        if getattr(config, name) != MemoryConfig.model_fields[name].default:
            settings[name] = getattr(config, name)
    shapes = [(s.heads, s.kv_heads, s.dim, s.sliding, s.scaling) for s in layers]
    return {
        "weights": weight_hash(model),
        "layers": _hash(json.dumps(shapes).encode(), *map(_rotation_bytes, layers)),
        "tokenizer": tokenizer_hash(tokenizer),
        "template": template,
        "dtype": str(layers[0].dtype).removeprefix("torch."),
        **{name: str(value) for name, value in settings.items()},
    }


def weight_hash(model: nn.Module) -> str:
    """Hash over name, shape, dtype and evenly sampled elements of every parameter and buffer.

    Every tensor is read, because an adapter may change a few of them only; at most 65,536 elements
    of each, because a hash of 16 GB would cost more than loading them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_sample_bytes(values_of(model, name, tensor)))
    return digest.hexdigest()


def weights_identity(model: nn.Module) -> str:
    """Hash over name, shape and evenly sampled elements of every parameter, the same for every dtype
    the model may be loaded in."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.named_parameters()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(_sample_bytes(values_of(model, name, tensor), torch.bfloat16))
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of the tokenizer's whole definition: vocabulary, merges, normaliser, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        definition = json.loads(backend.to_str())
        for setting in ("padding", "truncation"):  # a call's, not the tokenizer's
            definition.pop(setting, None)
        return _hash(json.dumps(definition, sort_keys=True).encode())
    parts = [tokenizer.get_vocab(), tokenizer.all_special_tokens, type(tokenizer).__name__]
    return _hash(json.dumps(parts, sort_keys=True).encode())


def check(stored: Mapping[str, str], current: Mapping[str, str], session: str) -> None:
    """Refuse to go on under a changed model.

    Raises:
        FingerprintMismatchError: names what differs.
    """
    differing = sorted(k for k in {*stored, *current} if stored.get(k) != current.get(k))
    if not differing:
        return
    details = ", ".join(
        f"{k} (stored {stored.get(k, 'nothing')}, now {current.get(k, 'nothing')})"
        for k in differing
    )
    raise FingerprintMismatchError(
        f"session {session!r} was written under another model or memory layout: {details}. {_ADVICE}"
    )


def _sample_bytes(tensor: Tensor, dtype: torch.dtype | None = None) -> bytes:
    flat = tensor.detach().reshape(-1)
    step = max(1, flat.numel() // _MOST_SAMPLES)
    sample = flat[::step].contiguous().cpu().to(dtype or tensor.dtype)
    return sample.view(torch.uint8).numpy().tobytes()


def _rotation_bytes(layer: LayerSpec) -> bytes:
    if layer.rotary is None:
        return b"none"
    return layer.rotary.style.encode() + _sample_bytes(layer.rotary.inv_freq)


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
