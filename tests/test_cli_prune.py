"""`longmem sessions prune` and the sizes and ages it is given."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest
import typer
from command import Command

from longmem.cli.quantities import parse_age, parse_bytes
from longmem.stores import SQLiteStore
from longmem.stores.samples import fill, sample_info

DAY = 86_400


@pytest.fixture
def longmem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "160")
    return Command(monkeypatch, capsys)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """Sessions "day0" (new) to "day3" (three days unused); of ann, but for day2 of ben."""
    path = tmp_path / "store"
    with SQLiteStore(path) as store:
        for age in range(4):
            owner = "ben" if age == 2 else "ann"
            handle = store.create(sample_info(f"day{age}", owner=owner))
            fill(handle, 1)
            handle.close()
    with sqlite3.connect(path / "longmem.db") as database:
        for age in range(4):
            database.execute(
                "UPDATE sessions SET updated_at = ? WHERE id = ?",
                (time.time() - age * DAY - 60, f"day{age}"),
            )
        database.execute("UPDATE sessions SET ttl = ? WHERE id IN ('day1', 'day2')", (1.5 * DAY,))
    database.close()
    return str(path)


def ids(store: str) -> list[str]:
    with SQLiteStore(store, read_only=True) as opened:
        return [info.id for info in opened.sessions()]


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (("--older-than", "36h"), ["day0", "day1"]),
        (("--older-than", "36h", "--owner", "ann"), ["day0", "day1", "day2"]),
        (("--expired",), ["day0", "day1", "day3"]),
        (("--expired", "--older-than", "3d"), ["day0", "day1"]),
        (("--older-than", "1w"), ["day0", "day1", "day2", "day3"]),
        (("--max-bytes", "10GB"), ["day0", "day1", "day2", "day3"]),
        (("--max-bytes", "1"), []),
        (("--max-bytes", "1", "--owner", "ben"), ["day0", "day1", "day3"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_sessions_go_until_the_conditions_hold(
    longmem: Command, store: str, conditions: tuple[str, ...], kept: list[str]
) -> None:
    before = ids(store)
    told = longmem("sessions", "prune", "--store", store, *conditions, "--dry-run", "--json")
    assert ids(store) == before
    done = longmem("sessions", "prune", "--store", store, *conditions, "--yes", "--json")
    assert (done.code, done.err) == (0, "")
    assert ids(store) == kept
    figures, foretold = json.loads(done.out), json.loads(told.out)
    assert [each["id"] for each in figures["deleted"]] == sorted(
        set(before) - set(kept), reverse=True
    ), "the least recently used first"
    assert {**foretold, "dry_run": False} == figures
    with SQLiteStore(store, read_only=True) as opened:
        assert opened.verify() == []


def test_the_least_recently_used_go_until_the_rest_fits(longmem: Command, store: str) -> None:
    with SQLiteStore(store, read_only=True) as opened:
        sizes = [info.charged for info in opened.sessions()]
    done = longmem(
        "sessions", "prune", "--store", store, "--max-bytes", str(sum(sizes[:2])), "--yes"
    )
    assert ids(store) == ["day0", "day1"]
    assert "To be deleted: 2 of 4 sessions" in done.out
    assert "Deleted 2 sessions" in done.out
    again = longmem(
        "sessions", "prune", "--store", store, "--max-bytes", str(sum(sizes[:2])), "--yes"
    )
    assert again.out.startswith("Nothing has to go: 2 sessions hold")


def test_nothing_is_pruned_unless_somebody_says_yes(longmem: Command, store: str) -> None:
    asked = longmem("sessions", "prune", "--store", store, "--older-than", "1d")
    assert asked.code == 1 and "--yes" in asked.err and "day3" in asked.out
    shown = longmem("sessions", "prune", "--store", store, "--older-than", "1d", "--dry-run")
    assert shown.code == 0 and "Nothing was deleted" in shown.out
    assert len(ids(store)) == 4


def test_a_dry_run_reads_a_store_that_is_written_elsewhere(longmem: Command, store: str) -> None:
    with SQLiteStore(store):
        arguments = ("sessions", "prune", "--store", store, "--expired")
        assert longmem(*arguments, "--dry-run").code == 0
        done = longmem(*arguments, "--yes")
        assert done.code == 1 and "is being written" in done.err
    assert len(ids(store)) == 4


def test_a_session_used_since_it_was_listed_stays(
    longmem: Command, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use(count: int, yes: bool) -> None:
        with SQLiteStore(store) as opened:
            fill(opened.open("day3"), 1)

    monkeypatch.setattr("longmem.cli.prune._ask", use)
    done = longmem("sessions", "prune", "--store", store, "--older-than", "36h")
    assert done.code == 0 and "1 were used meanwhile" in done.err
    assert ids(store) == ["day3", "day0", "day1"]


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("--owner", "ann"),
        ("--older-than", "30"),
        ("--older-than", "soon"),
        ("--older-than", "0d"),
        ("--older-than", "-3d"),
        ("--max-bytes", "10 apples"),
        ("--max-bytes", "0"),
        ("--max-bytes", "-1GB"),
    ],
    ids=" ".join,
)
def test_what_is_no_condition_is_wrong_usage(
    longmem: Command, store: str, wrong: tuple[str, ...]
) -> None:
    done = longmem("sessions", "prune", "--store", store, *wrong, "--yes")
    assert done.code == 2
    assert "Traceback" not in done.err
    assert len(ids(store)) == 4


def test_the_list_shows_bytes_and_expiry(longmem: Command, store: str) -> None:
    shown = longmem("sessions", "list", "--store", store).out
    assert "expires" in shown and shown.count("expired") == 1
    listed = json.loads(longmem("sessions", "list", "--store", store, "--json").out)
    assert [each["expires_at"] is not None for each in listed] == [False, True, True, False]
    assert all(each["bytes_charged"] > each["bytes_disk"] > 0 for each in listed)
    assert ", expired" in longmem("sessions", "show", "day2", "--store", store).out
    assert ", expires 2" in longmem("sessions", "show", "day1", "--store", store).out


def test_a_fresh_machine_has_nothing_to_prune(
    longmem: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    done = longmem("sessions", "prune", "--expired", "--yes")
    assert done.code == 0 and done.out.startswith("Nothing has to go")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("10GB", 10**10), ("500MiB", 500 * 2**20), ("1.5 kb", 1500), ("2tib", 2**41)],
)
def test_sizes_are_read_as_written(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("12h", 43_200), ("1.5d", 129_600), ("2W", 14 * DAY)],
)
def test_ages_are_read_as_written(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "GB", "1e9", "٣GB", "10 G B", "1" * 400 + "GB", "nan", "inf"])
def test_what_is_no_size_is_told_how_to_write_it(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"10GB|out of range"):
        parse_bytes(text)
