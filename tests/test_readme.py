"""Everything in README.md that can be run is run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from server_process import shared

from longmem import MemoryConfig
from longmem.cli import app, demo

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SMALLER = {"--tokens": "600", "--questions": "1", "--seeds": "1"}
DOCS = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))


def shell_lines() -> Iterator[list[str]]:
    """The words of every command, comments taken off."""
    for language, text in BLOCKS:
        if language == "sh":
            yield from (shlex.split(line, comments=True) for line in text.splitlines())


def shrunk(words: list[str]) -> list[str]:
    """A command with its sizes cut down."""
    words = [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    return [*words, "--tokens", "600"] if words[0] == "demo" and "--tokens" not in words else words


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own: working directory, user's data, and a transcript."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    (tmp_path / "transcript.jsonl").write_text('{"role": "user", "content": "Hello."}\n')
    return tmp_path


def test_every_block_is_one_that_this_file_runs() -> None:
    assert {language for language, _ in BLOCKS} == {"python", "sh"}
    assert {words[0] for words in shell_lines()} == {"python", "make", "longmem"}


def test_the_first_python_stands_on_the_first_screen() -> None:
    assert README.splitlines().index("```python") < 29


def test_the_first_block_has_15_lines_at_most() -> None:
    first = next(text for language, text in BLOCKS if language == "python")
    assert len(first.splitlines()) <= 15


def test_the_python_blocks_run_one_after_the_other(
    in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {}
    for number, text in enumerate(text for language, text in BLOCKS if language == "python"):
        if "127.0.0.1:8000" in text:
            text = text.replace("http://127.0.0.1:8000", shared().url)
        exec(compile(text, f"README.md, Python block {number}", "exec"), names)
    assert "tokens from memory" in capsys.readouterr().out


def test_the_longmem_commands_run_one_after_the_other(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # test_demo.py runs the demo's real processes.
    monkeypatch.setattr(demo, "_process", lambda *words: app(list(words), standalone_mode=False))
    longmem = Command(monkeypatch, capsys)
    for words in shell_lines():
        if words[:2] == ["longmem", "serve"]:  # its client's block has such a server
            assert longmem("serve", "--help").code == 0 and words[2:] == ["--store", "chats"]
        elif words[0] == "longmem":
            done = longmem(*shrunk(words[1:]), stdin="Hello.")
            assert done.code == 0, f"{shlex.join(words)}: {done.err}"


def test_the_other_commands_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for words in shell_lines():
        if words[0] == "make":
            assert words[1] in targets
        if words[0] == "python":
            assert words[1:-1] == ["-m", "pip", "install", "--editable"]
            assert words[-1] in (".", ".[server]")


def test_the_settings_table_states_the_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", README, re.MULTILINE)
    assert rows
    for name, default in rows:
        given = 4 * 2**30 if default == "4 GiB" else ast.literal_eval(default.strip("`"))
        assert MemoryConfig.model_fields[name].default == given, name


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *DOCS])
def test_linked_files_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8")):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), target
