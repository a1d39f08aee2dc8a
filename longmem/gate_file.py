"""Gate files: how much each head of one model listens to its compressive memory.

A safetensors file with "gate" ``[L, H]`` float32 in [0, 1], and where they apply "offset" ``[L, H]``,
"decay" ``[L, H_kv]`` and "features.<layer>" ``[H_kv, D, D]``. Its metadata names the model's weights and
the rule, feature map and mix it was made for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from longmem.config import Compressive
from longmem.errors import ConfigError
from longmem.fingerprint import weights_identity
from longmem.memory import Gates, LayerSpec

_FORMAT = "longmem-gates-1"
_MADE_FOR = ("rule", "feature_map", "mix", "decay", "chunk")


def save_gates(
    path: str | Path,
    gates: Gates,
    model: nn.Module,
    config: Compressive,
    **about: str,
) -> None:
    """Write the gates of a model.

    Args:
        path: the file.
        gates: what to write.
        model: the model they belong to; its weights are hashed.
        config: the settings they were made for.
        about: more metadata, for people.
    """
    tensors = {"gate": gates.gate.float().contiguous().cpu()}
    if gates.offset is not None:
        tensors["offset"] = gates.offset.float().contiguous().cpu()
    if gates.decay is not None:
        tensors["decay"] = gates.decay.float().contiguous().cpu()
    for layer, weight in gates.features.items():
        tensors[f"features.{layer}"] = weight.float().contiguous().cpu()
    made_for = {name: str(getattr(config, name)) for name in _MADE_FOR}
    identity = {"format": _FORMAT, "weights": weights_identity(model)}
    new = Path(path).with_name(f".{Path(path).name}.new")
    save_file(tensors, new, metadata={**about, **made_for, **identity})
    os.replace(new, path)


def load_gates(
    path: str | Path, model: nn.Module, layers: Sequence[LayerSpec], config: Compressive
) -> Gates:
    """Read the gates of this model.

    Args:
        path: the file.
        model: the model; its weights are hashed and compared.
        layers: its attention layers.
        config: the settings the gates are to be used with.

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
    for name in _MADE_FOR:
        if metadata.get(name) != str(getattr(config, name)):
            raise ConfigError(
                f"the gate file {path} was made for {name} = {metadata.get(name)!r}, but the memory is "
                f"set to {getattr(config, name)!r}; set Compressive.{name}, or calibrate again"
            )
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
