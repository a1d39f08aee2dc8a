"""What the commands share: options, the model, the store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from longmem import Engine
    from longmem.stores import SQLiteStore

NANO = "nano"

Model = Annotated[
    str,
    typer.Option("--model", "-m", help="nano (bundled), a folder, or a Hugging Face model name."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ...; default: cuda where there is one.")
]
StorePath = Annotated[
    Path | None,
    typer.Option(
        "--store", help="Folder of the store.  [default: longmem in the user's data folder]"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def check_writable(path: Path | None) -> Path | None:
    """Refuse a file that could not be written, before minutes of work and not after them.

    Raises:
        ConfigError: it is a folder, or its folder is none, or may not be written to.
    """
    if path is None:
        return None
    from longmem.errors import ConfigError

    place = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    if place == path.absolute():
        wrong = "it is a folder" if place.is_dir() else ""
    else:
        wrong = "" if place.is_dir() else f"{place} is no folder"
    if not wrong and not os.access(place, os.W_OK):
        wrong = f"{place} may not be written to"
    if wrong:
        raise ConfigError(f"{path} cannot be written: {wrong}; give another file")
    return path


def read_utf8(path: Path, option: str) -> str:
    """A text file.

    Args:
        option: that named it, for the message.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    from longmem.errors import InputError

    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InputError(
            f"the text {path} cannot be read: {error.strerror}; check {option}"
        ) from None
    except UnicodeDecodeError as error:
        raise InputError(f"the text {path} is not UTF-8 ({error}); convert it first") from None


def console() -> Console:
    """A console that prints text as it is, without guessing at numbers to colour."""
    return Console(highlight=False, markup=False, emoji=False)


def default_store() -> Path:
    """Where sessions live unless `--store` says otherwise."""
    data = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(data).expanduser() / "longmem"


def open_store(path: Path | None, *, read_only: bool = False) -> SQLiteStore:
    """The store at `path`, or the default one."""
    from longmem.stores import SQLiteStore

    return SQLiteStore(path or default_store(), read_only=read_only)


def load_engine(model: str, device: str | None = None) -> Engine:
    """The bundled model for "nano", else what transformers finds under that name."""
    from transformers.utils import logging

    from longmem import Engine

    if model == NANO:
        logging.disable_progress_bar()  # it loads in a blink
        return Engine.nano(device=device)
    return Engine.from_pretrained(model, device=device)


def readable_bytes(count: float) -> str:
    """As a person reads it: "12.3 MB" (1 MB is 1,000,000 bytes)."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
