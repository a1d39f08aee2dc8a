"""What `longmem bench gpu` does only on a GPU, on one that is pretended: events, peaks, the link."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pretend_cuda
import pytest
import torch
from pretend_device import pretend

from longmem.bench.gpu.decode import StepTimes
from longmem.bench.gpu.figures import figures
from longmem.bench.gpu.plan import Plan
from longmem.bench.gpu.run import Run
from longmem.bench.gpu.shapes import TINY_SHAPE
from longmem.bench.gpu.trust import BUILT_ON
from longmem.bench.kernels.case import Case
from longmem.ops.kernels import Launch
from longmem.ops.kernels.configs import tried

GPU = torch.device("cuda", 0)
FREE, HELD, PEAK = 2**36, 2**20, 2**21


class Properties:
    """`torch.cuda.get_device_properties`."""

    name, total_memory, multi_processor_count, major, minor = "pretended", 2**37, 132, 9, 0


def made(*_: Any) -> Iterator[Case]:
    """A case of every op that sections are built on."""
    for op in sorted(set().union(*BUILT_ON.values())):
        x = torch.ones(8, device=GPU)
        yield Case(op, "case", ("kernel",), "T=1", 64, 100, 100, lambda x=x: x + 1, lambda: 0.5)  # type: ignore[misc]  # bound now


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU on which every call takes a millisecond."""
    monkeypatch.setenv("LONGMEM_KERNELS", "auto")
    monkeypatch.setattr(pretend_cuda.Event, "elapsed_time", lambda *_: 1.0, raising=False)
    few = tried("step_attention", "attend", Launch({"PROGRAMS": 2, "BLOCK_N": 32}))
    asked: dict[str, Any] = {
        "mem_get_info": lambda device=None: (FREE, 2**37),
        "memory_allocated": lambda device=None: HELD,
        "max_memory_allocated": lambda device=None: PEAK,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_device_properties": lambda device=None: Properties,
        "get_device_name": lambda device=None: Properties.name,
    }
    with few, pretend(), mock.patch.multiple(torch.cuda, **asked):
        yield


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_asked_for_times_peaks_and_bandwidths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.bench.gpu.check.check_steps", lambda device: [])
    monkeypatch.setattr("longmem.bench.gpu.decode._reply_ms", lambda *_: 1.0)
    wanted = ("decode", "ingest", "memory")
    run = Run(Plan(TINY_SHAPE, GPU, (32,), wanted, (1,)), make=made)
    assert list(run.sections()) == ["check", "history", "others"]
    found = figures(run.outcome)
    assert found["measured"] and found["hardware"]["name"] == "pretended"
    assert found["rates"]["copy"] == 2000 * TINY_SHAPE.copy_bytes
    assert found["rates"]["link"] == 1000 * TINY_SHAPE.copy_bytes // 8
    decoded = found["sections"]["decode"]["rows"][0]
    assert set(decoded["recycled_ms"]) == {1.0} and decoded["history"] == 32
    (held,) = found["sections"]["memory"]["rows"]
    assert (held["steady"], held["peak"], held["counted"]) == (HELD, PEAK, False)
    (read,) = found["sections"]["ingest"]["stretches"]
    assert read["tokens_per_s"] == 32_000


@pytest.mark.usefixtures("gpu")
def test_what_does_not_fit_the_device_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.bench.gpu.check.check_steps", lambda device: [])
    times = StepTimes(24, "exact", False, 2, (1.0,), (2.0,), None, {})
    monkeypatch.setattr("longmem.bench.gpu.walk.measure_steps", lambda *_, **__: times)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (1000, 2**37))
    run = Run(Plan(TINY_SHAPE, GPU, (24,), ("decode",), (1,)), make=made)
    list(run.sections())
    left = run.outcome.budget.left_out[-1]
    assert left["what"] == "transformers at 24" and "GiB free" in left["why"]


@pytest.mark.usefixtures("gpu")
def test_compiled_steps_are_measured_by_an_engine_of_the_historys_codec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[Any] = []

    def measured(engine: Any, *_: Any, compiled: bool = False) -> StepTimes:
        used.extend([engine] if compiled else [])
        return StepTimes(24, "int8", compiled, 2, (1.0,), (2.0,), None, {})

    monkeypatch.setattr("longmem.bench.gpu.check.check_steps", lambda device: [])
    monkeypatch.setattr("longmem.bench.gpu.walk.measure_steps", measured)
    plan = Plan(TINY_SHAPE, GPU, (24,), ("decode",), (1,), codec="int8", dense=False)
    list(Run(plan, make=made).sections())
    (engine,) = used
    assert engine.config.codec == "int8" and engine.segment_tokens == TINY_SHAPE.segments[0]


@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_the_other_dtype_is_compared_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.bench.gpu.check.check_steps", lambda device: [])
    run = Run(Plan(TINY_SHAPE, GPU, (8,), ("check",), (1,)), make=made)
    seen = {name: {each.dtype for each in run.outcome.trust.ops} for name in run.sections()}
    assert seen == {"check": {"bfloat16"}, "others": {"bfloat16", "float16"}}
    short = Run(Plan(TINY_SHAPE, GPU, (8,), ("check",), (1,), budget_s=0), make=made)
    assert list(short.sections()) == ["check"]
    (left,) = short.outcome.budget.left_out
    assert left["what"] == "comparisons at D = 64, float16"


def test_a_gpu_that_is_asked_for_and_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from longmem.cli.bench.gpu import gpu as command
    from longmem.errors import ConfigError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if torch.cuda.device_count():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="cannot be used"):
        command(device="cuda:0", out=tmp_path)
    assert not list(tmp_path.iterdir())
