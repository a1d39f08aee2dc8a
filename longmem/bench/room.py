"""Whether a history fits: bytes of its keys and values against memory and disk that are free."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from longmem.engine import Engine
from longmem.errors import ConfigError

_GROWTH = 1.5
"""Buffers that grow are allocated half as large again."""
_TEXT = 64
"""Bytes of one token's text and id in Python objects, or in the store."""
_FILES = 1.1
"""Headers, checksums and the ends of short files come on top of what is stored."""


@dataclass(frozen=True)
class Need:
    """Bytes a session takes, about."""

    host: int
    device: int
    disk: int


def need(engine: Engine, tokens: int, stored: bool) -> Need:
    """What a history of `tokens` tokens takes under the engine's settings.

    Args:
        stored: whether the session lives in a store on disk, so that blocks may leave memory.
    """
    config = engine.config
    first = 0 if config.lookup_layers == "all" else config.lookup_layers[0]
    everything = config.lookup == "all"
    kept = min(1.0, config.repr_topk / config.block_size)
    blocks = index = rows = attended = disk = 0.0
    for spec in engine.info.layers:
        size = spec.bytes_per_token * tokens
        disk += size
        if spec.sliding is not None or spec.index < first:
            continue
        blocks += size if everything or config.topk > 0 else 0
        attended += size * _GROWTH if everything else 0
        if config.lookup_layers == "all" or spec.index in config.lookup_layers:
            rows += size / 2 * kept
            index += size / 2 * kept * _GROWTH
    if stored:
        blocks = min(blocks, config.host_bytes)
    return Need(
        host=int(blocks + _TEXT * tokens),
        device=int(index + attended),
        disk=int((disk + rows + _TEXT * tokens) * _FILES) if stored else 0,
    )


def check_room(
    engine: Engine,
    name: str,
    tokens: int,
    folder: Path | None = None,
    advice: str = "take fewer --tokens",
) -> None:
    """Refuse a history that this machine cannot hold, before anything is read.

    Args:
        name: of the settings, for the message.
        folder: of the store; None keeps the session in memory.
        advice: what to do where memory is short.

    Raises:
        ConfigError: says how much is missing where.
    """
    needed = need(engine, tokens, folder is not None)
    on_host = needed.host
    if engine.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(engine.device)
        _compare(name, tokens, needed.device, free, "GPU memory", "take fewer --tokens")
    else:
        on_host += needed.device
    _compare(name, tokens, on_host, free_memory(), "memory", advice)
    if folder is not None:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        free = shutil.disk_usage(place).free
        _compare(name, tokens, needed.disk, free, f"disk at {place}", "take fewer --tokens")


def free_memory() -> int | None:
    """Bytes of main memory a process may still take; None where the system does not tell."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = meminfo.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        found.append(max(0, int(text) - int(used.read_text())))
    return min(found, default=None)


def _compare(
    name: str, tokens: int, needed: int, free: int | None, where: str, advice: str
) -> None:
    if free is not None and needed > free:
        raise ConfigError(
            f"{tokens:,} tokens under {name} need about {needed / 1e9:,.1f} GB of {where}, and "
            f"{free / 1e9:,.1f} GB are free; {advice}"
        )
