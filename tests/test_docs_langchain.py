"""docs/langchain.md: its programs run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "langchain.md").read_text("utf-8")


def test_the_programs_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for program in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(program, "docs/langchain.md", "exec"), names)
    answer, sessions = capsys.readouterr().out.splitlines()
    assert "482913" in answer and answer.endswith("from memory")
    forked, thread = eval(sessions)
    assert forked[0].startswith("alice~") and forked[1] == 4
    assert thread == ("alice", 4)
