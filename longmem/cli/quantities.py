"""Sizes and ages as people write them on a command line: 10GB, 500MiB, 30d, 12h."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import typer

_SIZES = {"": 1, "B": 1}
_SIZES |= {f"{prefix}B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_SIZES |= {f"{prefix}IB": 1024**power for power, prefix in enumerate("KMGT", 1)}
_AGES = {"S": 1, "M": 60, "H": 3600, "D": 86_400, "W": 7 * 86_400}


def parse_bytes(text: str) -> int:
    """Bytes of "10GB" (1 GB is 1,000,000,000), "500MiB" (1 MiB is 1,048,576) or "4096".

    Raises:
        typer.BadParameter: it is none of these, or not above 0.
    """
    return math.ceil(_parse(text, _SIZES, "10GB, 500MiB or 4096 (bytes)"))


def parse_age(text: str) -> float:
    """Seconds of "90s", "15m", "12h", "30d" or "2w".

    Raises:
        typer.BadParameter: it is none of these, or not above 0.
    """
    return _parse(text, _AGES, "90s, 15m, 12h, 30d or 2w")


def _parse(text: str, units: Mapping[str, int], examples: str) -> float:
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text, re.ASCII | re.IGNORECASE)
    unit = units.get(found[2].upper()) if found else None
    if found is None or unit is None:
        raise typer.BadParameter(f"{text!r} is not understood; write it like {examples}.")
    number = float(found[1]) * unit
    if not 0 < number < math.inf:
        raise typer.BadParameter(f"{text!r} is out of range; give a number above 0.")
    return number
