"""The memory settings gates are calibrated for, and how to write them down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longmem.config import Compressive, MemoryConfig


def settings(
    base: MemoryConfig, max_positions: int, window: int | None, changes: Mapping[str, Any]
) -> MemoryConfig:
    """The model's own settings with a compressive memory, in a window that leaves it something to hold.

    Args:
        base: the model's settings.
        max_positions: its trained positions.
        window: n_local; None takes base.n_local, or a quarter of the trained positions if that is less,
            so that a context within these holds several windows.
        changes: further settings, "compressive" among them.

    Returns:
        Settings without looked-up blocks, unless `changes` says otherwise, whose blocks, look-up spans,
        initial tokens and chunks are no longer than the window.

    Raises:
        ConfigError: a name is unknown or a value out of range.
    """
    window = window or min(base.n_local, max(2, max_positions // 4))
    fitted = {
        name: min(getattr(base, name), window)
        for name in ("n_init", "block_size", "lookup_span", "min_block")
    }
    compressive = {"chunk": min(Compressive().chunk, window), **changes.get("compressive", {})}
    asked = {**fitted, "n_local": window, "topk": 0, "contiguity": 0, **changes}
    return base.replace(**{**asked, "compressive": compressive})


def snippet(config: MemoryConfig, gates: str | Path) -> str:
    """Python that makes these settings with this gate file."""
    assert config.compressive is not None
    inner = _arguments(config.compressive.model_copy(update={"gates": str(gates)}))
    outer = _arguments(config.model_copy(update={"compressive": None}))
    outer.append(f"compressive=Compressive({', '.join(inner)})")
    return f"MemoryConfig({', '.join(outer)})"


def _arguments(settings: MemoryConfig | Compressive) -> list[str]:
    """What differs from the defaults; of the memory, what says how it works, always."""
    always = {"rule", "feature_map", "mix"}
    values: dict[str, Any] = settings.model_dump()
    return [
        f"{name}={value!r}".replace("'", '"')
        for name, value in values.items()
        if name in always or value != type(settings).model_fields[name].default
    ]
