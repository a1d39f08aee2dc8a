"""What a run is to measure, as the command line has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longmem.bench.gpu.shapes import KIB, Shape
from longmem.bench.kernels.cases import MAKERS
from longmem.errors import ConfigError

SECTIONS = ("check", "roofline", "decode", "ingest", "memory", "sessions")
"""In the order in which they are measured; check comes first whether it was asked for or not."""
OVER_HISTORY = frozenset({"decode", "ingest", "memory"})
"""Sections that are measured while one history is read."""
_UNITS = {"": 1, "K": KIB, "M": KIB * KIB}


@dataclass(frozen=True)
class Plan:
    """A run.

    Args:
        shape: the model.
        device: where it runs.
        lengths: tokens of history, shortest first.
        sections: those of `SECTIONS` that are wanted.
        sessions: how many at once, fewest first.
        codec: of the blocks; "auto": exact where host memory holds that, else the widest that fits.
        host_bytes: host memory that histories may take; None: what is free, less a margin.
        budget_s: seconds after which nothing new is begun.
        dense: whether transformers' own caches are measured, too.
        compiled: whether steps that torch compiles are measured beside those it does not; on a GPU.
        ops: whose kernels are compared and timed; None: all. What is built on another is not told.
    """

    shape: Shape
    device: torch.device
    lengths: tuple[int, ...]
    sections: tuple[str, ...]
    sessions: tuple[int, ...]
    codec: str = "auto"
    host_bytes: int | None = None
    budget_s: float = 540.0
    dense: bool = True
    compiled: bool = True
    ops: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        wrong = sorted(set(self.sections) - set(SECTIONS))
        if wrong:
            raise ConfigError(f"no section is called {', '.join(wrong)}; choose from {SECTIONS}")
        strange = sorted(set(self.ops or ()) - set(MAKERS))
        if strange:
            raise ConfigError(f"no op is called {', '.join(strange)}; choose from {[*MAKERS]}")
        if self.codec not in ("auto", "exact", "int8", "int4"):
            raise ConfigError(f"codec {self.codec!r} is not measured; auto, exact, int8 or int4")

    @property
    def interpreted(self) -> bool:
        """Whether kernels run in Triton's interpreter, where times mean nothing."""
        return self.device.type != "cuda"

    def wants(self, *sections: str) -> bool:
        """Whether one of them is wanted."""
        return bool(set(sections) & set(self.sections))


def lengths_of(texts: Sequence[str]) -> tuple[int, ...]:
    """Numbers of tokens like "8K", "1M" or "500", each once, the least first; 1K is 1,024.

    Raises:
        ConfigError: one is none.
    """
    return tuple(sorted({_length(text) for text in texts}))


def in_short(tokens: int) -> str:
    """A number of tokens as `lengths_of` reads it."""
    for unit in ("M", "K"):
        if tokens % _UNITS[unit] == 0:
            return f"{tokens // _UNITS[unit]}{unit}"
    return f"{tokens:,}"


def _length(text: str) -> int:
    unit = text[-1:].upper() if not text[-1:].isdigit() else ""
    number = text[: len(text) - len(unit)]
    if unit not in _UNITS or not number.isdigit() or int(number) < 1:
        raise ConfigError(f"{text!r} is no length; give tokens like 8K, 64K, 1M or 5000")
    return int(number) * _UNITS[unit]
