"""Histories read once, from the shortest length to the longest, with everything measured on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from longmem.bench.chat_stream import Report, silent
from longmem.bench.gpu.budget import Budget
from longmem.bench.gpu.decode import StepTimes, measure_steps
from longmem.bench.gpu.dense import DenseTime, dense_bytes, measure_dense
from longmem.bench.gpu.history import History, Reach, Stretch, let_go
from longmem.bench.gpu.memory import MemorySample, Meter
from longmem.bench.gpu.model import compiled_engine, engine_with
from longmem.bench.gpu.plan import Plan, in_short
from longmem.engine import Engine

_FIRST_RATE = 5000.0
"""Tokens per second that reading is expected to do before any was timed."""
_STEPS_S = 10.0
"""Seconds that decoding at one length is expected to take, and transformers' own at most."""
_COMPILE_S = 90.0
"""Seconds that torch is expected to compile for, once."""
_MARGIN = 1.05


def graphs_of(engine: Engine) -> dict[str, Any]:
    """Passes that went through CUDA graphs so far, JSON-able; "used" is False where there are none."""
    graphs = getattr(engine, "graphs", None)
    if graphs is None:
        return {"used": False}
    names = ("replays", "captures", "refused")
    return {"used": True, **{name: getattr(graphs, name) for name in names}}


@dataclass
class Walked:
    """What was found on the way; complete or not, it can be told at any time."""

    steps: list[StepTimes] = field(default_factory=list)
    dense: list[DenseTime] = field(default_factory=list)
    stretches: dict[str, list[Stretch]] = field(default_factory=dict)
    samples: list[MemorySample] = field(default_factory=list)
    graphs: dict[str, Any] = field(default_factory=dict)
    """By codec, what CUDA graphs did for its history."""


class Walk:
    """Reads the histories of a plan.

    Args:
        engine: the model; its codec is another for each history.
        plan: what is wanted.
        wanted: sections of `longmem.bench.gpu.plan.OVER_HISTORY` whose figures are told.
        budget: of time.
        report: told how far it is.
        save: called with what was found after each length.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        wanted: set[str],
        budget: Budget,
        report: Report = silent,
        save: Callable[[Walked], None] = lambda walked: None,
    ) -> None:
        self._engine, self._plan, self._budget = engine, plan, budget
        self._wanted = wanted
        self._report, self._save = report, save
        self._rate = _FIRST_RATE if engine.device.type == "cuda" else float("inf")
        self._compiled: Engine | None = None
        self.found = Walked()

    def read(self, reach: Reach) -> None:
        """One history, through all its lengths; on the way memory is looked at at the others', too."""
        config = self._engine.config.replace(codec=reach.codec)
        history = History(engine_with(self._engine, config), self._plan.shape)
        meter = Meter(history.engine)
        self.found.stretches.setdefault(reach.codec, [])
        for n in (n for n in self._plan.lengths if n <= reach.lengths[-1]):
            if not self._reads_to(history, n, meter):
                break
            if n in reach.lengths:
                self._measure(history, meter)
            else:
                self._sample(history, meter, None)
            self.found.graphs[reach.codec] = graphs_of(history.engine)
            self._save(self.found)

    def _reads_to(self, history: History, n: int, meter: Meter) -> bool:
        what = f"{in_short(n)} under codec {history.engine.config.codec}"
        if not self._budget.allows(f"reading to {what}", (n - history.tokens) / self._rate):
            return False
        meter.begin()
        for stretch in history.read_to(n):
            self.found.stretches[history.engine.config.codec].append(stretch)
            self._rate = stretch.tokens_per_s
            self._report(f"read to {stretch.stop:,}: {stretch.tokens_per_s:,.0f} tokens/s")
        self._peak_reading = meter.peak(history.memory)
        return True

    def _measure(self, history: History, meter: Meter) -> None:
        length = in_short(history.tokens)
        meter.begin()
        peak = None
        if "decode" in self._wanted and self._budget.allows(f"decoding at {length}", _STEPS_S):
            steps = measure_steps(history.engine, history.memory, self._plan.shape)
            self.found.steps.append(steps)
            self._report(f"{length}: {steps.recycled:.2f} ms recycled, {steps.refresh:.2f} refresh")
            peak = meter.peak(history.memory)
        self._sample(history, meter, peak)
        if peak is not None and self._plan.compiled and self._engine.device.type == "cuda":
            self._measure_compiled(history)
        if "decode" in self._wanted and self._plan.dense:
            self._compare(history.tokens)

    def _measure_compiled(self, history: History) -> None:
        """The same steps, compiled by torch; what it refuses is left out."""
        what = f"compiled steps at {in_short(history.tokens)}"
        made = self._compiled
        if made is not None and made.config != history.engine.config:
            made = None  # it was for another codec
        if not self._budget.allows(what, _STEPS_S + _COMPILE_S * (made is None)):
            return
        self._compiled = made or compiled_engine(history.engine)
        steps = measure_steps(self._compiled, history.memory, self._plan.shape, compiled=True)
        graphs = graphs_of(self._compiled)
        self.found.graphs["compiled"] = graphs
        if not graphs["used"] or graphs["refused"]:
            self._budget.leave_out(what, graphs.get("refused") or "no graph serves this model")
            return
        self.found.steps.append(steps)
        self._report(f"{what}: {steps.recycled:.2f} ms recycled, {steps.refresh:.2f} refresh")

    def _sample(self, history: History, meter: Meter, peak: int | None) -> None:
        if "memory" in self._wanted:
            self.found.samples.append(meter.sample(history.memory, self._peak_reading, peak))

    def _compare(self, tokens: int) -> None:
        """With transformers' own caches, if they fit."""
        what, device = f"transformers at {in_short(tokens)}", self._engine.device
        if tokens > self._plan.shape.dense_up_to:
            self._budget.leave_out(what, "longer than what is compared")
            return
        let_go(device)
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            needed = _MARGIN * dense_bytes(self._engine, tokens)
            if needed > free:
                gib = [f"{x / 2**30:.0f} GiB" for x in (needed, free)]
                self._budget.leave_out(what, f"needs {gib[0]} of the device's {gib[1]} free")
                return
        if self._budget.allows(what, _STEPS_S):
            self.found.dense += measure_dense(self._engine, tokens)
            let_go(device)
