"""`longmem bench gpu`, every section of it, over a toy model in Triton's interpreter."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command

from longmem.bench.gpu import steps_check
from longmem.bench.gpu.check import check
from longmem.bench.gpu.figures import figures
from longmem.bench.gpu.plan import SECTIONS, Plan
from longmem.bench.gpu.run import Run
from longmem.bench.gpu.sessions import SessionsTime
from longmem.bench.gpu.shapes import TINY_SHAPE
from longmem.bench.gpu.trust import Checked, Trust
from longmem.bench.kernels.case import Case
from longmem.cli import main

CPU = torch.device("cpu")
OPS = ("step_attention", "working_set_attention", "block_scoring", "block_gather")
"""All but the compressive memory's, which takes the interpreter long and no section is built on."""


@dataclass(frozen=True)
class Ran:
    """A run of the command: its exit code, what it printed, and the file it left."""

    code: int
    out: str
    figures: dict[str, Any]
    folder: Path


def run(folder: Path, *options: str) -> Ran:
    printed = io.StringIO()
    arguments = ["longmem", "bench", "gpu", "--shape", "tiny", "--device", "cpu", *options]
    arguments += ["--ops", ",".join(OPS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*arguments, "--out", str(folder)])
        patch.setenv("LONGMEM_KERNELS", "interpret")
        code = 0
        with redirect_stdout(printed), redirect_stderr(io.StringIO()):
            try:
                main()
            except SystemExit as error:
                code = int(error.code or 0)
    found = json.loads((folder / "gpu.json").read_text("utf-8"))
    return Ran(code, printed.getvalue(), found, folder)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Everything, with a host memory that holds the shorter history exact, the longer in 8 bits."""
    return run(tmp_path_factory.mktemp("gpu"), "--host-bytes", "90kB")


def test_every_section_runs_in_the_interpreter(ran: Ran) -> None:
    assert ran.code == 0
    assert list(ran.figures["sections"]) == list(SECTIONS)
    assert ran.figures["left_out"] == [] and ran.figures["refused"] == {}


def test_what_ran_in_the_interpreter_says_that_its_times_mean_nothing(ran: Ran) -> None:
    assert ran.figures["measured"] is False and "mean nothing" in ran.figures["why"]
    assert "Its times mean nothing" in ran.out
    assert all(aim["measured"] is None for aim in ran.figures["aims"])


def test_the_file_names_command_commit_machine_and_settings(ran: Ran) -> None:
    found = ran.figures
    assert found["command"].startswith("longmem bench gpu --shape tiny")
    assert found["commit"] and found["machine"]["torch"] == torch.__version__
    assert found["settings"]["topk"] == TINY_SHAPE.memory.topk
    assert found["shape"]["model"]["hidden_size"] == 128
    assert found["rates"]["copy"] > 0 and found["weights"]["bytes"] > 0


def test_every_op_is_compared_and_timed(ran: Ran) -> None:
    check, rows = ran.figures["sections"]["check"], ran.figures["sections"]["roofline"]["rows"]
    assert check["right"] and {row["op"] for row in check["ops"]} == set(OPS)
    assert {row["op"] for row in rows} == set(OPS)
    assert [row["name"] for row in check["steps"]] == [
        "refresh step",
        "recycled step",
        "packed step",
        "replayed steps",
    ]
    for row in rows:
        assert row["ms"] > 0 and row["bytes"] > 0 and row["share"] == row["floor_ms"] / row["ms"]


def test_steps_are_timed_at_every_length_and_beside_transformers(ran: Ran) -> None:
    decode = ran.figures["sections"]["decode"]
    assert [(row["history"], row["codec"]) for row in decode["rows"]] == [
        (64, "exact"),
        (96, "int8"),
    ]
    stride, rounds = TINY_SHAPE.memory.stride, TINY_SHAPE.rounds
    for row in decode["rows"]:
        assert len(row["refresh_ms"]) == rounds and len(row["recycled_ms"]) == rounds * (stride - 1)
        assert row["reply_ms"] > 0 and sum(row["blocks_from"].values()) > 0
        assert row["recycled_to_weights"] == pytest.approx(
            row["median_ms"]["recycled"] / ran.figures["weights"]["ms"]
        )
    ways = {(row["history"], row["way"]) for row in decode["dense"]}
    assert {(n, f"{name}Cache, sdpa") for n in (64, 96) for name in ("Dynamic", "Static")} <= ways
    assert all(len(row["ms"]) == 8 for row in decode["dense"])
    assert all(graphs["replays"] > 0 for graphs in decode["graphs"].values())


def test_reading_and_memory_are_told_of_every_history(ran: Ran) -> None:
    sections = ran.figures["sections"]
    read = [(row["codec"], row["start"], row["stop"]) for row in sections["ingest"]["stretches"]]
    assert read == [("exact", 0, 64), ("int8", 0, 64), ("int8", 64, 96)]
    for row in sections["ingest"]["stretches"]:
        assert row["tokens_per_s"] == pytest.approx(1000 * (row["stop"] - row["start"]) / row["ms"])
    held = sections["memory"]["rows"]
    assert [(row["history"], row["codec"]) for row in held] == [
        (64, "exact"),
        (64, "int8"),
        (96, "int8"),
    ]
    for row in held:
        assert 0 < row["index"] < row["session"] < row["steady"] <= row["peak"] and row["host"] > 0
    assert [row["sessions"] for row in sections["sessions"]["rows"]] == [1, 2]


def test_the_picture_is_drawn_and_no_other_file_is_left(ran: Ran) -> None:
    assert {each.name for each in ran.folder.iterdir()} == {"gpu.json", "gpu.png"}
    assert (ran.folder / "gpu.png").read_bytes().startswith(b"\x89PNG")


def test_without_time_only_the_comparisons_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.bench.gpu.check.check_steps", lambda device: [])
    plan = Plan(TINY_SHAPE, CPU, (64,), ("decode", "sessions"), (1,), budget_s=0)
    run = Run(plan, make=lambda *_: stub_cases())
    list(run.sections())
    found = figures(run.outcome)
    assert list(found["sections"]) == ["check"]
    left_out = {each["what"] for each in found["left_out"]}
    assert left_out == {"reading to 64 under codec exact", "1 sessions"}


def test_without_a_gpu_nothing_is_measured_and_the_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = Command(monkeypatch, capsys)("bench", "gpu", "--out", str(tmp_path))
    assert ran.code == 0 and "No GPU was at hand" in ran.out
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert found["measured"] is False and found["sections"] == {}
    assert found["to_measure"] == "longmem bench gpu --out docs/results"


def test_without_a_gpu_figures_of_one_are_left_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "gpu.json").write_text('{"measured": true}', "utf-8")
    ran = Command(monkeypatch, capsys)("bench", "gpu", "--out", str(tmp_path))
    assert ran.code == 0 and "left as it is" in ran.out
    assert json.loads((tmp_path / "gpu.json").read_text("utf-8")) == {"measured": True}


@pytest.mark.parametrize(
    "options",
    [("--only", "nonsense"), ("--shape", "huge"), ("--lengths", "abc"), ("--codec", "x"),
     ("--sessions", "0"), ("--host-bytes", "zz"), ("--tune",)],
)  # fmt: skip
def test_options_are_read_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran = Command(monkeypatch, capsys)("bench", "gpu", *options)
    assert ran.code != 0 and "No GPU was at hand" not in ran.out


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *options: str,
    **settings: str,
) -> str:
    """What the command says that refuses to begin."""
    for name, value in {"LONGMEM_KERNELS": "interpret", **settings}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("longmem.bench.gpu.run.Run.sections", lambda self: pytest.fail("it began"))
    arguments = ("bench", "gpu", "--shape", "tiny", "--device", "cpu", *options)
    ran = Command(monkeypatch, capsys)(*arguments)
    assert ran.code == 1 and not ran.out
    return ran.err


@pytest.mark.parametrize("setting", ["LONGMEM_KERNELS=off", "TRITON_INTERPRET=0"])
def test_with_kernels_switched_off_nothing_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    name, _, value = setting.partition("=")
    assert name in refused(monkeypatch, capsys, **{name: value})


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    said = refused(monkeypatch, capsys, "--out", str(tmp_path / "file" / "folder"))
    assert "cannot be written to" in said


@pytest.mark.parametrize("left", ['{"measured": tr', "[]"])
def test_what_a_killed_run_left_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], left: str
) -> None:
    (tmp_path / "gpu.json").write_text(left, "utf-8")
    assert "gpu.json" in refused(monkeypatch, capsys, "--out", str(tmp_path))


def broken(op: str) -> Any:
    """Cases of which those of one op give wrong numbers."""

    def make(*args: Any, **kwargs: Any) -> Iterator[Case]:
        for case in stub_cases():
            yield replace(case, error=lambda: 9.0) if case.op == op else case

    return make


def stub_cases() -> Iterator[Case]:
    for op in OPS:
        yield Case(op, "case", ("kernel",), "T=1", 64, 1000, 1000, lambda: None, lambda: 0.5)


def test_what_is_built_on_a_wrong_op_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.bench.gpu.check.check_steps", lambda device: [])
    plan = Plan(TINY_SHAPE, CPU, (64,), ("roofline", "decode", "sessions"), (1,))
    run = Run(plan, make=broken("step_attention"))
    assert list(run.sections()) == ["check", "roofline"]
    found = figures(run.outcome)
    assert set(found["refused"]) == {"decode", "sessions"} and not run.outcome.trust.right
    by_op = {row["op"]: row for row in found["sections"]["roofline"]["rows"]}
    assert by_op["step_attention"]["ms"] is None and by_op["step_attention"]["share"] is None
    assert "comparison" in by_op["step_attention"]["why"]
    assert by_op["block_scoring"]["ms"] is not None
    assert set(found["sections"]) == {"check", "roofline"}


def test_what_breaks_off_keeps_what_was_found_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> Iterator[Any]:
        yield SessionsTime(1, 48, 2, (1.0,), (2.0,))
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr("longmem.bench.gpu.check.check_steps", lambda device: [])
    monkeypatch.setattr("longmem.bench.gpu.run.measure_sessions", no_memory)
    run = Run(
        Plan(TINY_SHAPE, CPU, (64,), ("sessions",), (1, 2)), make=lambda *_, **__: stub_cases()
    )
    assert list(run.sections()) == ["check", "sessions"] and not run.outcome.right
    found = figures(run.outcome)
    assert found["broken"] == {"sessions": "RuntimeError: out of luck"}
    assert [row["sessions"] for row in found["sections"]["sessions"]["rows"]] == [1]


def test_steps_that_cannot_be_compared_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> list[Checked]:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr("longmem.bench.gpu.check.check_steps", broken)
    plan = Plan(TINY_SHAPE, CPU, (64,), ("check",), (1,))
    trust = check(plan, make=lambda *_, **__: stub_cases())
    assert not trust.right and "illegal memory access" in trust.steps[0].why


def test_a_kernel_that_writes_wrong_numbers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from longmem.ops.step_attention import stepping

    right = stepping.launch

    def wrong(kernel: Any, grid: Any, device: Any, how: Any, *args: Any, **meta: Any) -> None:
        right(kernel, grid, device, how, *args, **meta)
        for tensor in args:
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                tensor.mul_(1.5)

    monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
    monkeypatch.setattr(stepping, "launch", wrong)
    found = {each.name: each for each in steps_check.check_steps(CPU)}
    assert not found["recycled step"].right and not found["packed step"].right


def test_a_model_without_kernels_is_not_compared_with_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LONGMEM_KERNELS", "off")
    found = steps_check.check_steps(CPU)
    assert [each.why for each in found] == ["kernels do not serve"] * 3
    assert Trust(steps=found).against("decode")
