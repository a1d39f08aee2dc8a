"""Options that several benchmarks take, and how lists are written in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longmem.cli.common import NANO, check_writable

if TYPE_CHECKING:
    from longmem import Engine

Presets = Annotated[
    str,
    typer.Option(help="Memories to compare, with commas between them; see longmem.presets."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="[PRESET:]NAME=VALUE",
        help="A memory setting, of all presets or of one; may be repeated.",
    ),
]
FirstSeed = Annotated[int, typer.Option(min=0, help="Seed of the first prompt.")]
Folder = Annotated[
    Path | None,
    typer.Option("--store", help="Keep sessions on disk, in this folder, while they last."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", callback=check_writable, help="Write the figures to a JSON file."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the figures as one line of JSON after the text.")
]

_NANO_ROWS = 256
"""Tokens of the rows nano was trained on, of its 1,024 positions."""


def names(text: str | Sequence[str]) -> list[str]:
    """What stands between commas, in one text or several, each once."""
    texts = [text] if isinstance(text, str) else text
    found = [part.strip() for each in texts for part in each.split(",")]
    return list(dict.fromkeys(part for part in found if part))


def numbers(texts: Sequence[str], option: str) -> list[int]:
    """Positive whole numbers between commas; underscores may group digits.

    Raises:
        typer.BadParameter: one is something else.
    """
    try:
        found = [int(part) for part in names(texts)]
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
    if not found or min(found) < 1:
        raise typer.BadParameter("give whole numbers from 1 on", param_hint=option)
    return found


def training_tokens(model: str, engine: Engine, lengths: Sequence[int]) -> int:
    """Length at which a model is asked what it can do by itself: what it was trained on, and not
    longer than what is measured."""
    trained = _NANO_ROWS if model == NANO else engine.info.max_positions
    return min(trained, *lengths)
