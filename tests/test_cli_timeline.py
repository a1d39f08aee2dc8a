"""`longmem sessions fork`, `rollback`, `forget`, `erase` and `recall`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from command import Command
from conftest import chatter

from longmem import Engine
from longmem.stores import SQLiteStore


@pytest.fixture
def longmem(monkeypatch, capsys) -> Command:
    monkeypatch.setenv("COLUMNS", "160")
    return Command(monkeypatch, capsys)


@pytest.fixture
def path(tmp_path):
    """A store with session "a": a fact, chatter, a system prompt; four commits, under nano."""
    with (
        SQLiteStore(tmp_path / "s") as store,
        Engine.nano().session("a", store=store, system="Be brief.", owner="ann") as session,
    ):
        session.add([("user", "The gate code is 4711."), ("assistant", "Noted.")])
        session.add(chatter(2))
        session.add(chatter(1, seed=40))
    return str(tmp_path / "s")


def infos(path):
    with SQLiteStore(path, read_only=True) as store:
        return {info.id: info for info in store.sessions()}


def test_a_fork_and_a_rollback_need_no_model(longmem, path):
    told = longmem("sessions", "fork", "a", "b", "--at", "2", "--store", path)
    assert (told.code, told.out.strip()) == (0, "Session b: 3 turns of a.")
    told = longmem("sessions", "rollback", "a", "--to", "6", "--yes", "--store", path)
    assert (told.code, told.out.strip()) == (0, "Session a: 2 turns dropped, 7 kept.")
    found = infos(path)
    assert (found["a"].n_turns, found["b"].n_turns, found["b"].owner) == (7, 3, "ann")
    assert longmem("sessions", "fork", "a", "c", "--owner", "bob", "--store", path).code == 0
    assert (infos(path)["c"].n_turns, infos(path)["c"].owner) == (7, "bob")
    with SQLiteStore(path) as store, Engine.nano().session("b", store=store) as session:
        assert session.ask("What is the gate code?", max_new_tokens=8).text.strip() == "4711."


def test_going_back_where_no_exchange_ends_is_refused(longmem, path):
    for command in (("fork", "a", "b", "--at", "1"), ("rollback", "a", "--to", "1", "--yes")):
        told = longmem("sessions", *command, "--store", path)
        assert told.code == 1 and "turn 1 lies inside an exchange" in told.err
    assert [info.n_turns for info in infos(path).values()] == [9]


def test_nothing_is_dropped_when_nobody_is_there_to_ask(longmem, path):
    for command in (("rollback", "a", "--to", "2"), ("forget", "a", "1"), ("erase", "a")):
        told = longmem("sessions", *command, "--store", path)
        assert told.code == 1 and "give --yes" in told.err
    assert infos(path)["a"].n_turns == 9


def test_turns_are_forgotten_and_sessions_erased(longmem, path):
    told = longmem("sessions", "forget", "a", "1", "2", "--yes", "--store", path)
    assert (told.code, told.out.strip()) == (0, "Session a: 2 turns forgotten, 7 kept.")
    told = longmem("sessions", "forget", "a", "0", "--yes", "--store", path)
    assert told.code == 1 and "system turn" in told.err
    told = longmem("sessions", "erase", "a", "--yes", "--store", path)
    assert (told.code, told.out.strip()) == (0, "Erased session a.")
    assert infos(path) == {}


def test_a_question_is_recalled_with_its_sources(longmem, path):
    told = longmem("sessions", "recall", "a", "What is the gate code?", "-k", "2", "--store", path)
    assert told.code == 0 and "[1] The gate code is 4711." in told.out
    words = ("sessions", "recall", "a", "What is the gate code?", "--json", "--store", path)
    found = json.loads(longmem(*words).out)
    assert (found[0]["index"], found[0]["role"]) == (1, "user")
    assert {each["source"] for each in found if each["index"] == 1} == {"memory", "text"}
    assert {each["source"] for each in json.loads(longmem(*words, "--no-text").out)} == {"memory"}
    assert longmem("sessions", "fork", "a", "empty", "--at", "-1", "--store", path).code == 0
    told = longmem("sessions", "recall", "empty", "Hm?", "--store", path)
    assert told.out.strip() == "Nothing comes to mind."


@pytest.mark.parametrize(
    "command",
    [
        ("fork", "x", "y"),
        ("rollback", "x", "--to", "0"),
        ("forget", "x", "1"),
        ("erase", "x"),
        ("recall", "x", "Hm?"),
    ],
)
def test_a_session_that_is_not_there_is_named(longmem, path, command):
    told = longmem("sessions", *command, "--store", path)
    assert told.code == 1 and "'x'" in told.err
    assert set(infos(path)) == {"a"}


def test_help_of_these_commands_loads_no_torch():
    code = "import sys\nfrom longmem.cli import timeline, sessions\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
