"""What docs/agents.md shows runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command import Command

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(
    r"^```(\w*)\n(.*?)^```$", (ROOT / "docs/agents.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)


def test_the_python_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, text in enumerate(text for language, text in BLOCKS if language == "python"):
        exec(compile(text, f"docs/agents.md, Python block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.splitlines()[:2] == ["4417.", "40172."]
    assert "tokens stood in memory" in printed


def test_the_command_that_is_shown_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [line] = [text.strip() for language, text in BLOCKS if language == "sh"]
    assert line == "longmem mcp --store chats"
    told = Command(monkeypatch, capsys)("mcp", "--help")
    assert told.code == 0 and "--owner" in told.out and "--model" in told.out
