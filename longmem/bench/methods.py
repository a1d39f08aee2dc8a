"""The memories a benchmark compares: presets in one budget, changed settings, products of settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from longmem import presets
from longmem.config import MemoryConfig
from longmem.errors import ConfigError

_OWN = "longmem"
_SIZES = ("n_local", "block_size", "lookup_span")
_HOST = (
    "max_init",
    "device_bytes",
    "host_bytes",
    "max_bytes",
    "ttl",
    "max_turn_bytes",
    "keep_reasoning",
)


@dataclass(frozen=True)
class Method:
    """One memory under comparison: a name for tables, and its settings."""

    name: str
    config: MemoryConfig


@dataclass(frozen=True)
class Change:
    """One setting changed.

    Args:
        preset: the preset it is for; None for all.
        path: the setting's name, and the name inside it for nested ones.
        value: the new value.
    """

    preset: str | None
    path: tuple[str, ...]
    value: Any


def in_budget(base: MemoryConfig, name: str) -> MemoryConfig:
    """A preset in the sizes of `base`, so that methods differ and what they may attend to does not.

    "longmem" is `base` itself. Every other preset keeps the settings that make its method, and takes
    from `base`:

    - n_local, block_size and lookup_span; n_init, too, unless the method has none;
    - as many looked-up blocks: a preset with contiguity has its share of base.topk as neighbours;
    - topk_tokens of base.topk * base.block_size tokens, if the method picks tokens;
    - what is about the machine: the limits of bytes and of time, max_init, keep_reasoning.

    A preset that looks up all blocks ("full", and "recycled" when it refreshes) attends to more, as
    its method does.

    Raises:
        ConfigError: there is no such preset, or it does not exist in these sizes.
    """
    if name == _OWN:
        return base
    own = presets.settings(name)
    fitted = own | {field: getattr(base, field) for field in _SIZES + _HOST}
    if own.get("n_init") != 0:
        fitted["n_init"] = base.n_init
    if own.get("topk", 0) > 0:
        neighbours = own.get("contiguity", 0)
        share = neighbours / (own["topk"] + neighbours)
        fitted["contiguity"] = round(base.topk * share)
        fitted["topk"] = base.topk - fitted["contiguity"]
    if own.get("topk_tokens") is not None:
        fitted["topk_tokens"] = max(1, base.topk * base.block_size)
    if "min_block" in own:
        fitted["min_block"] = min(own["min_block"], base.block_size)
    return _checked(name, lambda: MemoryConfig(**fitted))


def methods(
    base: MemoryConfig,
    names: Sequence[str],
    changes: Sequence[Change] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
) -> list[Method]:
    """The memories to compare.

    Args:
        base: the model's own settings, which every preset takes its sizes from.
        names: presets.
        changes: settings changed in all of them, or in one.
        vary: per setting its values; every preset is taken with every combination of them.

    Raises:
        ConfigError: an unknown preset or setting, a value out of range, nothing to compare, or a
            compressive memory without a gate file, which would hold nothing.
    """
    _refuse_strangers(names, changes)
    found = []
    for name in dict.fromkeys(names):
        for values in product(*(vary or {}).values()):
            varied = [Change(None, _path(k), v) for k, v in zip(vary or {}, values, strict=True)]
            label = " ".join([name, *(f"{'.'.join(v.path)}={_shown(v.value)}" for v in varied)])
            mine = [c for c in changes if c.preset in (None, name)]
            config = _checked(
                label, lambda n=name, c=(*mine, *varied): _changed(in_budget(base, n), c)
            )
            _refuse_closed_gates(label, config)
            found.append(Method(label, config))
    if not found:
        raise ConfigError(
            "there is nothing to compare; name a preset, for instance --presets longmem"
        )
    return found


def parse_changes(texts: Sequence[str]) -> list[Change]:
    """Changes written as ``[PRESET:]NAME=VALUE``, such as ``topk=4``, ``scorer=representative``,
    ``infini:compressive.gates=gates.safetensors``; values are JSON or a bare word.

    Raises:
        ConfigError: one has no "=".
    """
    changes = []
    for text in texts:
        name, value = _split(text, "--set")
        preset, _, setting = name.rpartition(":")
        changes.append(Change(preset or None, _path(setting), _value(value)))
    return changes


def parse_vary(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Values written as ``NAME=A,B,C``.

    Raises:
        ConfigError: one has no "=", or no value.
    """
    vary = {}
    for text in texts:
        name, values = _split(text, "--vary")
        try:
            vary[name] = list(json.loads(f"[{values}]"))
        except ValueError:
            vary[name] = [_value(value) for value in values.split(",")]
    return vary


def _refuse_strangers(names: Sequence[str], changes: Sequence[Change]) -> None:
    for change in changes:
        if change.preset is not None and change.preset not in names:
            raise ConfigError(
                f"--set {change.preset}:{'.'.join(change.path)}=...: {change.preset!r} is not among "
                f"the presets compared, which are {', '.join(names)}"
            )


def _refuse_closed_gates(label: str, config: MemoryConfig) -> None:
    if config.compressive is not None and config.compressive.gates is None:
        name = label.split()[0]
        raise ConfigError(
            f"preset {label}: its gates are closed without a gate file, so that its compressive memory "
            f"would hold nothing; give --set {name}:compressive.gates=FILE, or measure the window alone "
            f"by --set {name}:compressive=null"
        )


def _changed(config: MemoryConfig, changes: Sequence[Change]) -> MemoryConfig:
    """The settings with changes; those of whole settings come before those inside them."""
    plain = {c.path[0]: c.value for c in changes if len(c.path) == 1}
    values = config.replace(**plain).model_dump()
    for change in changes:
        outer, *inner = change.path
        if not inner:
            continue
        held = values.get(outer, {})
        if not isinstance(held, dict):
            raise ConfigError(
                f"its {outer} is {held!r} and holds no {'.'.join(inner)}; name the preset that the change "
                f"is for, as in --set infini:{'.'.join(change.path)}=VALUE, or leave it out"
            )
        values[outer] = {**held, ".".join(inner): change.value}
    return MemoryConfig(**values)


def _checked(name: str, make: Any) -> MemoryConfig:
    try:
        config: MemoryConfig = make()
    except ConfigError as error:
        if str(error).startswith(("preset ", "no preset ")):
            raise
        raise ConfigError(f"preset {name}: {error}") from None
    return config


def _split(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"{option} {text}: write it as NAME=VALUE, such as {option} topk=4")
    return name, value


def _path(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a bare word


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
