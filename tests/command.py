"""Run the `longmem` command inside the test process, and write what it imports."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from longmem.cli import main

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "My café in Zürich is called ☃."},
    {"role": "assistant", "content": "Noted."},
]


@dataclass(frozen=True)
class Ran:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


class Command:
    """Calls `longmem` with arguments and standard input.

    Args:
        patch, capture: pytest's `monkeypatch` and `capsys`.
    """

    def __init__(self, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]) -> None:
        self._patch, self._capture = patch, capture

    def __call__(self, *arguments: str, stdin: str | bytes = "") -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self._patch.setattr(sys, "argv", ["longmem", *arguments])
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8"))
        self._capture.readouterr()
        try:
            main()
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        printed = self._capture.readouterr()
        return Ran(code, printed.out, printed.err)


def transcript(folder: Path, *more: str) -> str:
    """A file with `TURNS` and further lines."""
    path = folder / "talk.jsonl"
    lines = [json.dumps(turn, ensure_ascii=False) for turn in TURNS]
    path.write_text("\n".join([*lines, "", *more]), "utf-8")
    return str(path)
