"""`longmem demo`, with its two real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longmem.bench.demo import spread
from longmem.nano.dialogue import Question
from longmem.stores import SQLiteStore

KEYS = {
    "recall",
    "recall_window_only",
    "questions",
    "tokens",
    "tokens_reread",
    "resume_ttft_s",
    "bytes_device",
    "bytes_host",
    "bytes_disk",
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "store"


@pytest.fixture(scope="module")
def printed(kept: Path) -> str:
    """What a demo of 3,000 tokens prints."""
    line = [sys.executable, "-P", "-m", "longmem.cli", "demo", "--tokens", "3000", "--json"]
    line += ["--questions", "4", "--store", str(kept)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_last_line_holds_the_figures(printed: str) -> None:
    figures = json.loads(printed.splitlines()[-1])
    assert figures.keys() >= KEYS
    assert figures["questions"] == 4
    assert 0 <= figures["recall_window_only"] <= 1 and 0 <= figures["recall"] <= 1
    assert 3000 <= figures["tokens"] <= 3300
    assert 0 < figures["resume_ttft_s"] < 60
    assert all(figures[f"bytes_{place}"] > 0 for place in ("device", "host", "disk"))


def test_the_next_day_reads_nothing_again(printed: str) -> None:
    assert json.loads(printed.splitlines()[-1])["tokens_reread"] == 0


def test_two_processes_take_part(printed: str) -> None:
    days = [line.split("process ")[1].split()[0] for line in printed.splitlines() if "Day" in line]
    assert len(set(days)) == 2


def test_every_question_is_printed_with_both_replies(printed: str) -> None:
    assert printed.count("expected  ") == 4
    assert sum(line.lstrip()[2:].startswith("memory  ") for line in printed.splitlines()) == 4
    assert sum(line.lstrip()[2:].startswith("window  ") for line in printed.splitlines()) == 4


def test_the_output_fits_80_columns(printed: str) -> None:
    kept = [line for line in printed.splitlines() if line[:1] != "{" and "--store" not in line]
    assert max(map(len, kept)) <= 80


def test_a_store_that_was_given_is_kept(printed: str, kept: Path) -> None:
    with SQLiteStore(kept, read_only=True) as store:
        (session,) = store.sessions()
        assert session.n_tokens >= 3000
        assert store.verify() == []


def test_a_day_that_fails_ends_the_demo(tmp_path: Path) -> None:
    line = [sys.executable, "-P", "-m", "longmem.cli", "demo", "--model", str(tmp_path), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("longmem: no model could be loaded") == 1
    assert "Day 2" not in done.stdout


@pytest.mark.parametrize(("most", "chosen"), [(0, 10), (1, 1), (4, 4), (10, 10), (40, 10)])
def test_questions_are_spread_over_the_day(most: int, chosen: int) -> None:
    questions = [Question(f"{i}?", str(i), i, "code", False) for i in range(10)]
    turns = [question.fact_turn for question in spread(questions, most)]
    assert len(set(turns)) == chosen
    assert turns == sorted(turns)
    assert most < 2 or (turns[0], turns[-1]) == (0, 9)
