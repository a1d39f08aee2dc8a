"""What `longmem bench gpu` prints and draws, and what the documentation says of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from longmem.bench.gpu.aims import K64, K128, K512, M1
from longmem.bench.gpu.budget import Budget
from longmem.bench.gpu.decode import StepTimes
from longmem.bench.gpu.dense import DenseTime
from longmem.bench.gpu.figures import figures
from longmem.bench.gpu.history import Stretch
from longmem.bench.gpu.ingest import IngestRun
from longmem.bench.gpu.memory import MemorySample
from longmem.bench.gpu.plan import SECTIONS, Plan
from longmem.bench.gpu.plot import draw
from longmem.bench.gpu.rates import Rates
from longmem.bench.gpu.roofline import Roofline
from longmem.bench.gpu.run import Outcome
from longmem.bench.gpu.sessions import SessionsTime
from longmem.bench.gpu.shapes import EIGHT_B
from longmem.bench.gpu.trust import Checked, Trust
from longmem.bench.gpu.walk import Walked
from longmem.cli.bench.gpu_tables import closing, told

CPU = torch.device("cpu")
DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_the_documentation_says_whether_a_gpu_was_at_hand_and_lists_the_aims() -> None:
    found = json.loads((DOCS / "results/gpu.json").read_text("utf-8"))
    page = (DOCS / "gpu.md").read_text("utf-8")
    if not found["measured"]:
        assert "No GPU was at hand" in found["why"] and "no GPU was at hand" in page
    for aim in found["aims"]:
        bound = f"{'at most' if aim['most'] else 'at least'} {aim['asked']:g}"
        assert f"| {aim['what']} | {bound} |" in page


def large() -> Outcome:
    """What a run on a large GPU may find, with long numbers."""
    ms = 12345.678
    steps = [
        StepTimes(n, "exact", n > K128, 8, (ms,), (ms,), ms, {}) for n in (K64, K128, K512, M1)
    ]
    roofline = [Roofline("working_set_attention", "prefill, 1,024 tokens, mass", "", 128,
                         10**12, 10**13, 0, 123.4, None, "no time was left")]  # fmt: skip
    check = Checked("working_set_attention", "prefill, 1,024 tokens, mass", "", 256, "bfloat16",
                    None, "RuntimeError: CUDA error: an illegal memory access was encountered")  # fmt: skip
    stretch = Stretch(M1 - K64, M1, 2000.0)
    outcome = Outcome(
        Plan(EIGHT_B, CPU, EIGHT_B.lengths, SECTIONS, (1, 64)),
        Budget(540),
        Trust([check]),
        Rates(4.3e12, 7.9e14, 5.5e10, 2**32, 8192, "bfloat16"),
        roofline,
        Walked(steps, [DenseTime(K512, "DynamicCache, sdpa", (ms,))], {"exact": [stretch]},
               [MemorySample(M1, "exact", *(10**11,) * 7, False)]),
        IngestRun(1024, {}, {"exact": [stretch]}, {"exact": [1.6e10]}, 7.9e14),
        [SessionsTime(64, 8192, 8, (12.3,), (45.6,))],
        15 * 10**9,
    )  # fmt: skip
    outcome.budget.leave_out("reading to 1M under codec int8", "12 s were left, and it takes 90 s")
    outcome.refused["decode"] = "built on step_attention, which failed the comparison with its twin"
    return outcome


def test_what_is_printed_fits_a_hundred_columns() -> None:
    console = Console(file=io.StringIO(), width=100, highlight=False, markup=False)
    for section in ("check", "roofline", "history", "sessions"):
        for each in (*told(section, large()), *closing(large())):
            if isinstance(each, Table):
                assert console.measure(each).minimum <= 100
            console.print(each)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "…" not in text and max(map(len, text.splitlines())) <= 100
    assert "12345.68" in text and "no time was left" in text


def test_how_steps_were_launched_is_told() -> None:
    outcome = large()
    for graphs, way in (
        ({"exact": {"used": True, "refused": None}}, "graph"),
        ({"exact": {"used": True, "refused": "no room"}}, "no graph"),
        ({"exact": {"used": False}}, "no graph"),
        ({}, "no graph"),
    ):
        outcome.walked.graphs = graphs
        table = next(each for each in told("history", outcome) if isinstance(each, Table))
        assert list(table.columns[2].cells) == [way, way, "compiled", "compiled"]


def test_the_picture_has_every_side_and_the_floor(tmp_path: Path) -> None:
    found = figures(large())
    assert draw(found, tmp_path / "gpu.png") and (tmp_path / "gpu.png").stat().st_size > 10_000
    assert not draw({**found, "sections": {}}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
