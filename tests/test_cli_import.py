"""`longmem sessions import`: a transcript becomes a session, all of it or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import TURNS, Command, transcript

from longmem import Engine, rebuild
from longmem.feeding import Fed


@pytest.fixture
def longmem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "100")
    return Command(monkeypatch, capsys)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def imported(longmem: Command, store: str, tmp_path: Path) -> str:
    """A store with the session "old"."""
    done = longmem("sessions", "import", transcript(tmp_path), "--session", "old", "--store", store)
    assert done.code == 0, done.err
    return store


def test_a_transcript_becomes_a_session(longmem: Command, imported: str) -> None:
    shown = longmem("sessions", "show", "old", "--store", imported, "--json")
    turns = [json.loads(line) for line in shown.out.splitlines()]
    assert [{"role": t["role"], "content": t["content"]} for t in turns] == TURNS
    last = longmem("sessions", "show", "old", "--store", imported, "--last", "1").out
    assert "Noted." in last and "Zürich" not in last
    assert longmem("sessions", "verify", "old", "--store", imported).out == "Sound.\n"


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[1]",
        "[" * 100_000,
        '{"role": "user"}',
        '{"role": "robot", "content": "x"}',
        '{"role": ["user"], "content": "x"}',
        '{"role": "user", "content": ["x"]}',
        '{"role": "user", "content": " "}',
        '{"role": "user", "content": "\\u0000"}',
        '{"role": "user", "content": "\\ud800"}',
    ],
    ids=lambda line: line[:40],
)
def test_a_bad_line_is_named_and_nothing_is_imported(
    longmem: Command, store: str, tmp_path: Path, line: str
) -> None:
    path = transcript(tmp_path, line)
    done = longmem("sessions", "import", path, "--session", "new", "--store", store)
    assert done.code == 1
    assert done.err.startswith("longmem: talk.jsonl, line 5: ")
    assert not Path(store).exists()


def test_an_import_never_adds_to_a_session(longmem: Command, imported: str, tmp_path: Path) -> None:
    path = transcript(tmp_path)
    done = longmem("sessions", "import", path, "--session", "old", "--store", imported)
    assert (done.code, done.out) == (1, "")
    assert "exists already" in done.err


def test_an_import_that_fails_leaves_no_session(
    longmem: Command, store: str, tmp_path: Path
) -> None:
    long = json.dumps({"role": "system", "content": "word " * 5000})
    path = tmp_path / "long.jsonl"
    path.write_text(long)
    done = longmem("sessions", "import", str(path), "--session", "new", "--store", store)
    assert done.code == 1 and "max_init" in done.err
    assert longmem("sessions", "list", "--store", store).out == "No sessions.\n"


def test_an_import_that_breaks_off_halfway_leaves_no_session(
    longmem: Command, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, passes = transcript(tmp_path), []

    def read(engine: Engine, *arguments: Any) -> list[Fed]:
        passes.append(arguments)
        if len(passes) > 1:
            raise OSError(28, "No space left on device")
        return whole(engine, *arguments)

    whole = Engine.read
    with monkeypatch.context() as patch:
        patch.setattr(rebuild, "_TOKENS_PER_COMMIT", 1)
        patch.setattr(Engine, "read", read)
        done = longmem("sessions", "import", path, "--session", "new", "--store", store)
    assert done.code == 1 and "No space left" in done.err and len(passes) == 2
    assert longmem("sessions", "list", "--store", store).out == "No sessions.\n"
    assert longmem("sessions", "verify", "--store", store).out == "Sound.\n"
    assert longmem("sessions", "import", path, "--session", "new", "--store", store).code == 0


def test_an_id_that_is_refused_is_one_message(longmem: Command, store: str, tmp_path: Path) -> None:
    path = transcript(tmp_path)
    done = longmem("sessions", "import", path, "--session", "a/b", "--store", store)
    assert done.code == 1 and done.err.startswith("longmem: session id 'a/b' holds path")
