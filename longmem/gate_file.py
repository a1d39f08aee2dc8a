"""Gate files: how much each head of one model listens to its compressive memory.

A safetensors file with "gate" ``[L, H]`` float32 in [0, 1], and where they apply "offset" ``[L, H]``,
"decay" ``[L, H_kv]`` and "features.<layer>" ``[H_kv, D, D]``. Its metadata names the model's weights and
what it was made for: rule, feature map, mix, decay, chunk, and kind of window.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from longmem.config import Compressive, MemoryConfig
from longmem.errors import ConfigError
from longmem.fingerprint import weights_identity
from longmem.memory import Gates, LayerSpec
from longmem.ops.compressive import warn_if_fixed

_FORMAT = "longmem-gates-1"
_MADE_FOR = ("rule", "feature_map", "mix", "decay")


def segment_of(config: MemoryConfig) -> int | None:
    """Tokens of a segment, which are folded at once; None where the window slides."""
    return config.n_local if config.window == "segment" else None


def save_gates(
    path: str | Path,
    gates: Gates,
    model: nn.Module,
    config: Compressive,
    segment: int | None = None,
    **about: str,
) -> None:
    """Write the gates of a model.

    Args:
        path: the file.
        gates: what to write.
        model: the model they belong to; its weights are hashed.
        config: the settings they were made for.
        segment: tokens of a segment they were made for (`segment_of`); None: a sliding window.
        about: more metadata, for people.
    """
    tensors = {"gate": gates.gate.float().contiguous().cpu()}
    if gates.offset is not None:
        tensors["offset"] = gates.offset.float().contiguous().cpu()
    if gates.decay is not None:
        tensors["decay"] = gates.decay.float().contiguous().cpu()
    for layer, weight in gates.features.items():
        tensors[f"features.{layer}"] = weight.float().contiguous().cpu()
    made_for = _made_for(config, segment)
    identity = {"format": _FORMAT, "weights": weights_identity(model)}
    new = Path(path).with_name(f".{Path(path).name}.new")
    save_file(tensors, new, metadata={**about, **made_for, **identity})
    os.replace(new, path)


def load_gates(
    path: str | Path,
    model: nn.Module,
    layers: Sequence[LayerSpec],
    config: Compressive,
    segment: int | None = None,
) -> Gates:
    """Read the gates of this model.

    Args:
        path: the file.
        model: the model; its weights are hashed and compared.
        layers: its attention layers.
        config: the settings the gates are to be used with.
        segment: tokens of a segment they are to be used with (`segment_of`); None: a sliding window.

    Warns:
        UserWarning: the settings are such that z stops growing (`longmem.ops.compressive`).

    Raises:
        ConfigError: no gate file, one of another model or of other settings, or damaged values.
    """
    metadata, tensors = _read(path)
    if metadata.get("format") != _FORMAT or "gate" not in tensors:
        raise ConfigError(f"{path} is no gate file; make one with `longmem calibrate --out {path}`")
    if metadata.get("weights") != weights_identity(model):
        raise ConfigError(
            f"the gate file {path} belongs to a model with other weights; make one for this model "
            f"with `longmem calibrate --out {path}`, or leave Compressive.gates empty"
        )
    _check_made_for(path, metadata, config, segment)
    warn_if_fixed(config.rule, config.feature_map, segment or config.chunk)
    _check_values(path, tensors, layers)
    if config.mix == "lse" and "offset" not in tensors:
        raise ConfigError(f'the gate file {path} has no "offset", which mix="lse" needs')
    prefix = "features."
    if config.feature_map == "learned" and not all(
        f"{prefix}{i}" in tensors for i in range(len(layers))
    ):
        raise ConfigError(
            f"the gate file {path} lacks the learned feature maps of some layers; calibrate again with "
            "--features"
        )
    if config.rule == "delta" and bool((tensors.get("decay", torch.ones(1)) < 1).any()):
        raise ConfigError(f'the gate file {path} holds a decay, which rule="delta" cannot have')
    features = {
        int(name.removeprefix(prefix)): t for name, t in tensors.items() if name.startswith(prefix)
    }
    return Gates(tensors["gate"], tensors.get("offset"), tensors.get("decay"), features)


def _made_for(config: Compressive, segment: int | None) -> dict[str, str]:
    """What gates are only good for; with segments the chunk that is folded at once is a segment."""
    made_for = {name: str(getattr(config, name)) for name in _MADE_FOR}
    if segment is None:
        return {"window": "sliding", **made_for, "chunk": str(config.chunk)}
    return {"window": "segment", **made_for, "segment": str(segment)}


def _check_made_for(
    path: str | Path, metadata: Mapping[str, str], config: Compressive, segment: int | None
) -> None:
    asked = _made_for(config, segment)
    if (
        "window" not in metadata
    ):  # written before it was: the chunk is the setting, and segments may be named
        del asked["window"]
        if "segment" not in metadata:
            asked.pop("segment", None)
            asked["chunk"] = str(config.chunk)
    for name, value in asked.items():
        if metadata.get(name) != value:
            setting = {"window": "MemoryConfig.window", "segment": "MemoryConfig.n_local"}
            raise ConfigError(
                f"the gate file {path} was made for {name} = {metadata.get(name)!r}, but the memory is "
                f"set to {value!r}; set {setting.get(name, f'Compressive.{name}')}, or calibrate again"
            )


def _read(path: str | Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"the gate file {path} cannot be read: {error}; check its path"
        ) from error


def _check_values(
    path: str | Path, tensors: Mapping[str, Tensor], layers: Sequence[LayerSpec]
) -> None:
    n, spec = len(layers), layers[0]
    shapes = {
        "gate": (n, spec.heads),
        "offset": (n, spec.heads),
        "decay": (n, spec.kv_heads),
        **{f"features.{i}": (spec.kv_heads, spec.dim, spec.dim) for i in range(n)},
    }
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shapes.get(name):
            raise ConfigError(
                f"the gate file {path} holds {name!r} of shape {tuple(tensor.shape)}, where this "
                f"model needs {shapes.get(name)}; calibrate again"
            )
        if bool(tensor.isnan().any() | tensor.isposinf().any()):
            raise ConfigError(
                f"the gate file {path} holds NaN or infinity in {name!r}; calibrate again"
            )
    for name in ("gate", "decay"):
        values = tensors.get(name, torch.zeros(1))
        if not bool(((values >= 0) & (values <= 1)).all()):
            raise ConfigError(
                f"the gate file {path} holds a {name} outside [0, 1]; calibrate again"
            )
