"""The benchmarks over long histories: their figures, and the ratios between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command import Command

from longmem import ConfigError, Engine
from longmem.bench import commit, decode, disk, ingest, memory, resume, sessions
from longmem.bench.child import ask_child, spec_of
from longmem.bench.sessions import Seat, ask_together, differing
from longmem.bench.shelf import Shelf
from longmem.bench.stream import Sample

LENGTHS = [120, 400]


@pytest.fixture(scope="module")
def shelf(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    made = Shelf(tmp_path_factory.mktemp("shelf"), engine)
    made.fill(LENGTHS)
    return made


@pytest.fixture
def longmem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "160")
    return Command(monkeypatch, capsys)


def plain(figures: dict[str, object]) -> dict[str, Any]:
    """Through JSON and back: what a reader of the file gets."""
    return dict(json.loads(json.dumps(figures)))


def test_decode_compares_every_way_at_every_length(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "REPLY_TOKENS", 6)
    run = decode.measure(engine, shelf, LENGTHS, rounds=2, dense_up_to=120)
    found = plain(run.figures())
    recycled, every, dense = found["recycled"], found["every_token"], found["dense"]
    assert [len(side) for side in (recycled, every, dense)] == [2, 2, 1]
    assert all(len(row["ms"]) == 2 for row in (*recycled, *every, *dense))
    assert dense[0]["history"] == recycled[0]["history"] >= 120
    ms = [[row["ms_per_token"] for row in side] for side in (recycled, every, dense)]
    assert found["longest_to_shortest"]["recycled"] == pytest.approx(ms[0][1] / ms[0][0])
    assert found["longest_to_shortest"]["dense"] is None
    best = [row["ms_best"] for row in every]
    assert found["longest_to_shortest_best"]["every_token"] == pytest.approx(best[1] / best[0])
    assert found["every_token_to_recycled"][1] == pytest.approx(ms[1][1] / ms[0][1])
    assert found["dense_to_recycled"] == [pytest.approx(ms[2][0] / ms[0][0])]
    state, whole = recycled[0]["state_bytes"], dense[0]["state_bytes"]
    assert found["state_to_dense"] == [pytest.approx(state / whole)]


def test_the_time_per_token_is_the_median_of_its_rounds() -> None:
    time = decode.DecodeTime(10, (5.0, 1.0, 2.0), 100)
    assert (time.ms_per_token, time.row()["ms_best"]) == (2.0, 1.0)


def test_ingest_reads_on_from_every_length(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "TOKENS", 50)
    found = plain(ingest.measure(engine, shelf, LENGTHS, rounds=2, dense_up_to=120).figures())
    ours, theirs = found["longmem"], found["dense"]
    assert [len(ours), len(theirs), len(ours[0]["tokens_per_s"])] == [2, 1, 2]
    assert theirs[0]["history"] == ours[0]["history"] and found["longest_to_each"][1] == 1
    assert found["longest_to_each"][0] == pytest.approx(ours[1]["median"] / ours[0]["median"])
    assert found["longmem_to_dense"] == [pytest.approx(ours[0]["median"] / theirs[0]["median"])]


def test_commits_of_equal_exchanges_take_equal_bytes_of_files(engine: Engine, shelf: Shelf) -> None:
    found = plain(commit.measure(engine, shelf, LENGTHS, rounds=3).figures())
    short, long = found["rows"]
    assert short["tokens"] == long["tokens"] > commit.REPLY_TOKENS
    row = sum(spec.bytes_per_token for spec in engine.info.layers)
    assert all(size > row * short["tokens"] for size in short["file_bytes"])
    for name in ("ms", "file_bytes"):
        ratio = long["median"][name] / short["median"][name]
        assert found["to_shortest"][1][name] == pytest.approx(ratio)
        assert found["to_shortest"][0][name] == 1
    assert len(short["ms"]) == len(short["file_bytes"]) == 3


def test_a_resumed_session_reads_nothing_again(engine: Engine, shelf: Shelf) -> None:
    here = resume.resume_here(engine, shelf.take(400), sample_tokens=100)
    assert (here.reread_tokens, here.history >= 400) == (0, True)
    assert here.window_bytes > 0 and 100 <= here.sample_tokens < 200
    assert 0 < here.open_s < here.first_token_s
    row = plain(here.row())
    transcript = here.history * here.sample_s / here.sample_tokens
    assert row["transcript_s"] == pytest.approx(transcript)
    assert row["transcript_to_resume"] == pytest.approx(transcript / here.first_token_s)
    allowed = here.live_s + here.window_s
    assert row["resume_to_live_and_window"] == pytest.approx(here.first_token_s / allowed)


def test_tokens_that_are_read_again_are_counted(
    engine: Engine, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Engine.session
    monkeypatch.setattr(
        Engine, "session", lambda self, id, **how: session(self, id, rebuild=True, **how)
    )
    here = resume.resume_here(engine, shelf.take(120), sample_tokens=50)
    assert here.reread_tokens == here.history


def test_a_new_process_resumes_what_this_one_stored(engine: Engine, shelf: Shelf) -> None:
    found = plain(resume.measure(spec_of(engine, "nano"), shelf, [400], rounds=1).figures())
    (row,) = found["rows"]
    assert row["history"] >= 400 and found["reread_tokens"] == 0
    assert found["longest_to_shortest"] == 1 and row["first_token_s"] > row["open_s"] > 0


def test_what_a_child_process_says_of_its_end_is_passed_on(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="measures 'colour' ended with status 1"):
        ask_child("colour", spec_of(engine, "nano"))
    assert "KeyError: 'colour'" in capfd.readouterr().err


def _sample(tokens: int, peak: int, resident: int | None = None) -> Sample:
    return Sample(
        tokens, tokens // 20, 1.0, resident, peak, tokens, 7, 4 * tokens, 3, 5, 6, 8 * tokens, None
    )


def test_memory_is_flat_from_a_length_on_or_it_is_not() -> None:
    samples = [_sample(50, 100, 100), _sample(100, 200, 150), _sample(200, 220, 180)]
    found = plain(memory.MemoryRun(samples, 100, 80, 16).figures())
    assert (found["flat_from"], found["peak_ratio"], found["resident_ratio"]) == (100, 1.1, 1.2)
    assert (found["device_ratio"], found["peak_above_start"]) == (2.0, 140)
    assert found["peak_above_start_to_kv"] == 140 / 800 and len(found["samples"]) == 3
    short = memory.MemoryRun(samples, 1000, 80, 16).figures()
    assert (short["flat_from"], short["peak_ratio"], short["resident_ratio"]) == (None, None, None)


def test_bytes_on_disk_are_compared_with_keys_and_values() -> None:
    found = plain(disk.disk_figures([_sample(100, 1), _sample(200, 1)]))
    assert (found["tokens_per_turn"], found["kv_bytes"], found["files"]) == (20, 800, 3)
    assert (found["written_to_kv"], found["files_to_kv"]) == (2.0, 5 / 800)
    assert found["database_written_to_kv"] is None and len(found["by_history"]) == 2


def test_codecs_are_compared_with_the_bytes_of_bfloat16(engine: Engine, tmp_path: Path) -> None:
    found = disk.coded(engine, ["bf16", "int8"], 1200, tmp_path)
    rows = plain({"rows": disk.coded_figures(found)})["rows"]
    assert [row["payload_to_bf16"] for row in rows] == [
        row["payload_bytes"] / row["bf16_bytes"] for row in rows
    ]
    assert rows[0]["payload_to_bf16"] == 1 and 0.5 < rows[1]["payload_to_bf16"] < 0.7


def test_sessions_at_once_say_what_they_say_alone(engine: Engine) -> None:
    run = sessions.measure(engine, (1, 3), history=80, reply_tokens=6, rounds=2)
    found = plain(run.figures())
    one, three = found["rows"]
    assert (one["sessions"], three["sessions"], len(three["tokens_per_s"])) == (1, 3, 2)
    assert found["text_equal"] is True and three["differing"] == []
    assert found["to_first"] == [1, pytest.approx(three["median"] / one["median"])]
    assert found["to_alone"][1] == pytest.approx(three["median"] / found["alone_tokens_per_s"])


def test_a_session_that_says_something_else_among_others_is_named(engine: Engine) -> None:
    class Wavering(Seat):
        def ask(self, tokens: int) -> str:
            return "another"

    with engine.session("a") as a, engine.session("b") as b:
        seats = [Seat(a, "Hello."), Seat(b, "Good night.")]
        alone = [seat.ask(4) for seat in seats]
        _, together = ask_together([seats[0], Wavering(b, "Good night.")], 4)
    assert differing(alone, together) == {1} and differing(alone, alone[:1]) == set()
    found = sessions.SessionsRun([sessions.Concurrent(2, (1.0,), (1,))], 1.0).figures()
    assert found["text_equal"] is False


def test_one_command_measures_everything_over_one_history(longmem: Command, tmp_path: Path) -> None:
    over = ("--store", tmp_path / "shelf", "--out", tmp_path / "out", "--flat-from", "60")
    lengths = ("--tokens", "100,200", "--codec-tokens", "200", "--sessions", "1")
    done = longmem("bench", "scale", *map(str, over), *lengths, "--only", "memory,disk,commit")
    assert done.code == 0, done.err
    assert "Memory of the process" in done.out and "Committing one exchange" in done.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"memory.json", "disk.json", "commit.json"}
    figures = json.loads((tmp_path / "out" / "memory.json").read_text("utf-8"))
    assert figures["settings"]["host_bytes"] == 256_000_000 == figures["memory"]["host_bytes"]
    assert {"command", "commit", "machine", "model"} <= figures.keys()
    again = longmem("bench", "scale", *map(str, over), *lengths, "--only", "disk")
    assert again.code == 0 and "memory and disk are left out" in again.err


def test_decode_prints_a_table_and_writes_its_figures(
    longmem: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "REPLY_TOKENS", 3)
    out = str(tmp_path / "decode.json")
    done = longmem("bench", "decode", "--tokens", "60,120", "--rounds", "1", "--json", "--out", out)
    assert done.code == 0, done.err
    assert "ms/token" in done.out and "decode: round 1 of 1" in done.err
    printed = json.loads(done.out.splitlines()[-1])
    assert printed == json.loads(Path(out).read_text("utf-8"))
    assert printed["reply_tokens"] == 3 and len(printed["decode"]["recycled"]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("scale", "--only", "colour"), "choose from memory,disk,decode"),
        (("ingest", "--tokens", "none"), "invalid literal"),
        (("sessions", "--sessions", "0"), "whole numbers from 1 on"),
        (("commit", "--host-bytes", "much"), "write it like 10GB"),
    ],
)
def test_what_cannot_be_measured_is_one_message(
    longmem: Command, arguments: tuple[str, ...], message: str
) -> None:
    done = longmem("bench", *arguments)
    assert done.code == 2 and message in " ".join(done.err.split())
