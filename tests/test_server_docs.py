"""docs/server.md: its program runs, and what it lists is what the server has."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from server_process import Server, shared

from longmem.adapters.server import errors

ROOT = Path(__file__).resolve().parent.parent
FILES = (
    "errors",
    "chat_input",
    "chat_messages",
    "admission",
    "body",
    "keys",
    "traffic",
    "status",
    "sampling",
)
PAGE = (ROOT / "docs" / "server.md").read_text("utf-8")


@pytest.fixture(scope="module")
def nano() -> Server:
    return shared()


def test_the_program_remembers(nano: Server, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    address, session = f"{nano.url}/v1", '"x-session-id": "documented"'
    program = program.replace("http://127.0.0.1:8000/v1", address)
    exec(compile(program.replace('"x-session-id": "alice"', session), "docs/server.md", "exec"), {})
    told, asked = capsys.readouterr().out.splitlines()
    assert "(0 of" in told
    assert "482913" in asked and "from memory" in asked


def test_every_code_of_an_error_is_listed_and_no_other() -> None:
    page = PAGE.partition("## Errors")[2].partition("## Health")[0]
    listed = set(re.findall(r"`([a-z]+(?:_[a-z]+)+|diverged)`", page))
    files = [ROOT / "adapters" / "server" / f"{name}.py" for name in FILES]
    text = "".join(path.read_text("utf-8") for path in files)
    raised = set(re.findall(r'ApiError\(\s*\d{3},\s*"(\w+)"', text))
    raised |= {"rate_limit_exceeded", "concurrency_limit_exceeded"}  # through a function of theirs
    raised |= {code for _, _, code, _ in errors._KNOWN}
    raised |= {*errors._FRAMEWORK_CODES.values(), *errors._VALIDATION_CODES.values()}
    assert listed == raised


def test_every_figure_that_is_listed_is_there(nano: Server) -> None:
    figures = PAGE.partition("## Health")[2].partition("## The end")[0]
    rows = [row.split("|")[1] for row in figures.splitlines() if row.startswith("| `")]
    listed = {name for row in rows for name in re.findall(r"`([a-z_0-9]+)", row)}
    text = httpx.get(f"{nano.url}/metrics").text
    types = dict(re.findall(r"^# TYPE longmem_(\w+) (\w+)", text, re.MULTILINE))
    there = {name for name in types if not name.endswith("_created")}
    assert len(listed) > 25
    assert listed == there
