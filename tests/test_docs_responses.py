"""docs/responses.md: its program runs, and the routes it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from server_process import shared

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "responses.md").read_text("utf-8")


def test_the_program_remembers(capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    program = program.replace("http://127.0.0.1:8000", shared().url)
    exec(compile(program, "docs/responses.md", "exec"), {})
    answer, items = capsys.readouterr().out.splitlines()
    assert "482913" in answer
    assert items == "['message', 'message']"


def test_the_routes_are_the_servers() -> None:
    there = set(httpx.get(f"{shared().url}/openapi.json").json()["paths"])
    plain = {re.sub(r"\{\w+\}", "{}", path) for path in there}
    named = re.findall(r"`(?:GET|POST|DELETE)?,? ?(?:`DELETE )?(/v1/[\w/{}]+)", PAGE)
    own = re.findall(r"`(?:POST |GET )?\.\.\.(/\w+)", PAGE)
    wanted = {re.sub(r"\{\w+\}", "{}", path.rstrip("/")) for path in named}
    wanted |= {f"/v1/longmem/sessions/{{}}{path}" for path in own}
    assert len(wanted) > 12
    assert wanted - plain == set()
