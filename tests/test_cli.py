"""The `longmem` command, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command, transcript

from longmem import __version__
from longmem.stores import SQLiteStore


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


def test_the_version_is_printed(longmem: Command) -> None:
    assert longmem("--version").out == f"longmem {__version__}\n"


@pytest.mark.parametrize("command", ["demo", "chat", "sessions", "serve", "mcp", "bench"])
def test_every_command_explains_itself(longmem: Command, command: str) -> None:
    assert command in longmem("--help").out
    assert longmem(command, "--help").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("demo", "--tokens", "0"),
        ("demo", "--tokens", "many"),
        ("chat", "--nonsense"),
        ("sessions", "show"),
        ("sessions", "import", "there-is-no-such-file.jsonl", "--session", "x"),
        ("bench", "recall", "--seeds", "0"),
        ("bench", "decode", "--history", "x"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_code_2(longmem: Command, arguments: tuple[str, ...]) -> None:
    done = longmem(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("sessions", "list"),
        ("sessions", "show", "old"),
        ("sessions", "verify"),
        ("sessions", "delete", "old", "--yes"),
    ],
    ids=" ".join,
)
def test_a_missing_store_is_one_message_and_is_not_created(
    longmem: Command, store: str, arguments: tuple[str, ...]
) -> None:
    done = longmem(*arguments, "--store", store)
    assert done.code == 1
    assert done.err.startswith("longmem: there is no longmem store at")
    assert not Path(store).exists()


@pytest.mark.parametrize(
    "arguments",
    [("chat",), ("bench", "decode"), ("bench", "recall"), ("demo-day1", "--session", "x")],
    ids=" ".join,
)
def test_an_unknown_device_is_one_message(
    longmem: Command, store: str, arguments: tuple[str, ...]
) -> None:
    place = () if arguments[0] == "bench" else ("--store", store)
    done = longmem(*arguments, *place, "--device", "nonsense")
    assert done.code == 1
    assert done.err.startswith("longmem: device 'nonsense' cannot be used")


def test_an_unknown_model_is_one_message(longmem: Command, store: str, tmp_path: Path) -> None:
    done = longmem("chat", "--model", str(tmp_path), "--store", store)
    assert done.code == 1
    assert done.err.startswith("longmem: no model could be loaded from")


def test_a_pipe_gets_one_reply_per_line_and_the_session_goes_on(
    longmem: Command, store: str
) -> None:
    first = longmem("chat", "--store", store, stdin="My code is 482913.\n\n  \nHello.\n")
    assert (first.code, first.err) == (0, "")
    assert len(first.out.splitlines()) == 2
    longmem("chat", "--store", store, stdin="Ünï ☃ 日本 //x")
    shown = longmem("sessions", "show", "default", "--store", store, "--json")
    turns = [json.loads(line) for line in shown.out.splitlines()]
    said = [turn["content"] for turn in turns if turn["role"] == "user"]
    assert said == ["My code is 482913.", "Hello.", "Ünï ☃ 日本 //x"]


def test_a_line_that_is_refused_does_not_end_the_chat(longmem: Command, store: str) -> None:
    lines = b"half \xff a character\n/nonsense\nnul \x00\n//fine\n"
    done = longmem("chat", "--store", store, stdin=lines)
    assert done.code == 1
    assert done.err.count("longmem: ") == 3
    assert len(done.out.splitlines()) == 1
    listed = json.loads(longmem("sessions", "list", "--store", store, "--json").out)
    assert [(each["id"], each["turns"]) for each in listed] == [("default", 2)]
    assert "/fine" in longmem("sessions", "show", "default", "--store", store).out


def test_commands_within_a_chat_answer(longmem: Command, store: str) -> None:
    done = longmem(
        "chat", "--store", store, stdin="/recall\nHi.\n/recall\n/stats\n/help\n/quit\nno"
    )
    assert done.code == 0
    for part in ("No reply yet", "Nothing was looked up", "tokens in 2 turns", "/quit"):
        assert part in done.out


def test_a_chat_without_a_word_leaves_no_session(longmem: Command, store: str) -> None:
    assert longmem("chat", "--store", store, "--session", "typo").code == 0
    assert longmem("chat", "--store", store, "--system", " ").code == 1
    assert longmem("sessions", "list", "--store", store).out == "No sessions.\n"


def test_recall_tells_which_turns_were_looked_up(
    longmem: Command, store: str, tmp_path: Path
) -> None:
    said = ["My locker code is 482913.", *(f"I saw {i} birds at the lake." for i in range(40))]
    path = tmp_path / "birds.jsonl"
    path.write_text("\n".join(json.dumps({"role": "user", "content": text}) for text in said))
    longmem("sessions", "import", str(path), "--session", "birds", "--store", store)
    talk = "What is my locker code?\n/recall"
    done = longmem("chat", "--session", "birds", "--store", store, stdin=talk)
    assert "user       My locker code is 482913." in done.out


def test_a_fresh_machine_has_no_sessions(
    longmem: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert longmem("sessions", "list").out == "No sessions.\n"
    assert longmem("sessions", "list", "--json").out == "[]\n"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [("list",), ("show", "old")], ids=" ".join)
def test_a_reader_that_has_seen_enough_is_no_error(
    imported: str, arguments: tuple[str, ...]
) -> None:
    line = [sys.executable, "-P", "-m", "longmem.cli", "sessions", *arguments, "--store", imported]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_a_session_is_deleted_only_when_somebody_says_yes(longmem: Command, imported: str) -> None:
    asked = longmem("sessions", "delete", "old", "--store", imported)
    assert asked.code == 1 and "--yes" in asked.err
    assert longmem("sessions", "delete", "old", "--store", imported, "--yes").code == 0
    gone = longmem("sessions", "delete", "old", "--store", imported, "--yes")
    assert gone.code == 1 and "no session 'old'" in gone.err


def test_damage_is_reported_with_code_1(longmem: Command, imported: str) -> None:
    (file,) = (Path(imported) / "files").iterdir()
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = longmem("sessions", "verify", "--store", imported)
    assert done.code == 1 and "Found wrong: 1." in done.out
    (problem,) = json.loads(longmem("sessions", "verify", "--store", imported, "--json").out)
    assert problem["session"] == "old"


def test_a_store_that_is_written_elsewhere_can_be_read_but_not_written(
    longmem: Command, imported: str
) -> None:
    with SQLiteStore(imported):
        assert "old" in longmem("sessions", "list", "--store", imported).out
        done = longmem("chat", "--store", imported, stdin="Hi.")
    assert (done.code, done.out) == (1, "")
    assert f"pid {os.getpid()}" in done.err


def test_interrupting_a_reply_keeps_what_was_said(store: str) -> None:
    line = [sys.executable, "-P", "-m", "longmem.cli", "chat", "--store", store]
    babble = ["--temperature", "100", "--max-new-tokens", "100000"]
    with subprocess.Popen(
        [*line, *babble], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"Tell me everything.\n")
        process.stdin.close()
        process.stdout.read(64)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait() == 0, process.stderr.read()
    with SQLiteStore(store, read_only=True) as opened:
        turns = opened.open("default").turns()
    assert [turn.role for turn in turns] == ["user", "assistant"]
    assert turns[1].extra["finish_reason"] == "stopped"


def test_recall_is_measured_with_its_interval(longmem: Command) -> None:
    sizes = ("--tokens", "1000", "--seeds", "1", "--training-tokens", "0")
    done = longmem("bench", "recall", *sizes, "--set", "scorer=representative", "--json")
    figures = json.loads(done.out.splitlines()[-1])
    memory, window = figures["rows"]
    assert memory["questions"] == window["questions"] == 2
    assert len(memory["recall_interval"]) == 2
    assert "streaming-llm" in done.out


def test_the_time_per_token_is_measured(longmem: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.bench.decode.REPLY_TOKENS", 2)
    done = longmem("bench", "decode", "--history", "300", "--history", "600", "--json")
    figures = json.loads(done.out.splitlines()[-1])
    assert len(figures["decode"]["recycled"]) == 2 and figures["model"] == "nano"


def test_the_time_per_token_of_another_model_is_measured(longmem: Command, tmp_path: Path) -> None:
    done = longmem("bench", "decode", "--model", str(tmp_path))
    assert done.code == 1 and done.err.startswith("longmem: no model could be loaded from")


def test_an_unknown_setting_is_one_message(longmem: Command) -> None:
    done = longmem("bench", "recall", "--set", "colour=red")
    assert done.code == 1 and "no setting 'colour'" in done.err
