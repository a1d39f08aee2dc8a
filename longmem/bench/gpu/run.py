"""One run: check first, measure second, tell what there is at any time."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from longmem.bench.chat_stream import Report, silent
from longmem.bench.gpu.aims import Aim, aims
from longmem.bench.gpu.budget import Budget
from longmem.bench.gpu.check import MakeCases, check, check_others
from longmem.bench.gpu.history import Reach, let_go, reaches
from longmem.bench.gpu.ingest import IngestRun, fastest, fastest_segment, ingest_run
from longmem.bench.gpu.interpreted import few_programs
from longmem.bench.gpu.model import engine_of, engine_with, random_model
from longmem.bench.gpu.plan import OVER_HISTORY, Plan, in_short
from longmem.bench.gpu.rates import Rates, measure_rates
from longmem.bench.gpu.roofline import Roofline, measure_roofline
from longmem.bench.gpu.sessions import SessionsTime, measure_sessions
from longmem.bench.gpu.shapes import EIGHT_B
from longmem.bench.gpu.trust import BUILT_ON, Trust
from longmem.bench.gpu.walk import Walk, Walked
from longmem.bench.kernels.cases import cases
from longmem.bench.room import free_memory
from longmem.engine import Engine
from longmem.recycling.costs import weight_bytes

_DTYPE = torch.bfloat16
_HOST_SHARE = 0.85
"""Of the host memory that is free, so much may be taken by histories: pinned pages cannot be swapped."""
_TRY_S = 20.0
"""Seconds that finding the fastest segment is expected to take, with all kernels compiled."""


@dataclass
class Outcome:
    """What a run has found so far."""

    plan: Plan
    budget: Budget
    trust: Trust = field(default_factory=Trust)
    rates: Rates | None = None
    roofline: list[Roofline] = field(default_factory=list)
    walked: Walked = field(default_factory=Walked)
    ingest: IngestRun | None = None
    sessions: list[SessionsTime] = field(default_factory=list)
    weight_bytes: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    """Sections of which no figures are told, and why."""
    broken: dict[str, str] = field(default_factory=dict)
    """Parts of the run that ended in an error."""
    seconds: dict[str, float] = field(default_factory=dict)
    """That each section took."""

    @property
    def weights_ms(self) -> float | None:
        """The time to read the weights of a step once, at the measured bandwidth of a copy."""
        if self.rates is None or self.weight_bytes is None:
            return None
        return 1000 * self.weight_bytes / self.rates.copy

    @property
    def right(self) -> bool:
        """Whether everything agreed with its twin, and nothing broke off."""
        return self.trust.right and not self.broken

    @property
    def aimed(self) -> bool:
        """Whether this is what the aims are set for."""
        return self.plan.shape is EIGHT_B and not self.plan.interpreted

    @property
    def aims(self) -> list[Aim]:
        """The aims, with what was measured of them; without figures where this is something else."""
        if not self.aimed:
            return aims(Walked(), None, [], None)
        return aims(self.walked, self.ingest, self.sessions, self.weights_ms)


class Run:
    """Measures what a plan wants.

    Args:
        plan: what is wanted.
        report: told how far it is.
        save: called whenever there is more to keep.
        make: gives the cases of the ops.
    """

    def __init__(
        self,
        plan: Plan,
        report: Report = silent,
        save: Callable[[Outcome], None] = lambda outcome: None,
        make: MakeCases = cases,
    ) -> None:
        self._plan, self._report, self._save, self._make = plan, report, save, make
        self.outcome = Outcome(plan, Budget(plan.budget_s))

    def sections(self) -> Iterator[str]:
        """Measure; gives the name of each section when it is through."""
        for name, measure in (
            ("check", self._check),
            ("roofline", self._roofline),
            ("history", self._history),
            ("sessions", self._sessions),
            ("others", self._others),
        ):
            before = self.outcome.budget.spent
            with few_programs(self._plan.device):
                measured = self._attempt(name, measure)
            if measured:
                self.outcome.seconds[name] = self.outcome.budget.spent - before
                self._save(self.outcome)
                yield name

    def _attempt(self, name: str, measure: Callable[[], bool]) -> bool:
        """Whether there is something to tell. What breaks off is noted, and keeps what it had found."""
        try:
            return measure()
        except Exception as error:
            self.outcome.broken[name] = (
                f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            )
            self._report(traceback.format_exc())
            return True

    def _check(self) -> bool:
        outcome, plan = self.outcome, self._plan
        outcome.trust = check(plan, self._report, self._make)
        for section in (name for name in BUILT_ON if plan.wants(name)):
            if why := outcome.trust.against(section):
                outcome.refused[section] = why
        let_go(plan.device)
        if plan.wants("roofline", *BUILT_ON):
            outcome.rates = measure_rates(plan.shape, plan.device, _DTYPE)
        return True

    def _roofline(self) -> bool:
        outcome = self.outcome
        if not self._plan.wants("roofline") or outcome.rates is None:
            return False
        found = measure_roofline(
            self._plan, outcome.rates, outcome.trust, outcome.budget, self._report, self._make
        )
        outcome.roofline.extend(found)
        let_go(self._plan.device)
        return True

    def _history(self) -> bool:
        outcome, plan = self.outcome, self._plan
        wanted = {name for name in OVER_HISTORY if plan.wants(name)} - set(outcome.refused)
        if not wanted or outcome.rates is None:
            return False
        rates, engine = outcome.rates, self._engine()
        tried = self._tried(engine) if "ingest" in wanted else {}
        chosen = engine_with(engine, engine.config, fastest(tried) if tried else None)

        def tell(walked: Walked) -> None:
            if "ingest" in wanted:
                outcome.ingest = ingest_run(chosen, tried, walked.stretches, rates)
            self._save(outcome)

        walk = Walk(chosen, plan, wanted, outcome.budget, self._report, tell)
        outcome.walked = walk.found
        for reach in self._reaches(chosen):
            walk.read(reach)
            let_go(plan.device)
        return True

    def _sessions(self) -> bool:
        outcome, plan = self.outcome, self._plan
        if not plan.wants("sessions") or "sessions" in outcome.refused or outcome.rates is None:
            return False
        engine = self._engine()
        for found in measure_sessions(
            engine, plan.shape, plan.sessions, outcome.budget, self._report
        ):
            outcome.sessions.append(found)
            self._save(outcome)
        return True

    def _others(self) -> bool:
        """Head dimensions and dtypes that nothing here is measured in."""
        outcome, before = self.outcome, len(self.outcome.trust.ops)
        for each in check_others(self._plan, outcome.budget, self._report, self._make):
            outcome.trust = Trust([*outcome.trust.ops, each], outcome.trust.steps)
        return len(outcome.trust.ops) > before

    def _engine(self) -> Engine:
        """The model, made anew: nothing of another section lies in its memory."""
        shape = self._plan.shape
        model = random_model(shape, self._plan.device, _DTYPE)
        engine = engine_of(model, shape, shape.memory, shape.segments[0])
        self.outcome.weight_bytes = weight_bytes(model)
        self.outcome.settings = engine.config.model_dump(mode="json")
        return engine

    def _tried(self, engine: Engine) -> dict[int, float]:
        """Tokens per second by tokens of a forward pass; nothing where there is no choice, or no time."""
        shape, budget = self._plan.shape, self.outcome.budget
        if len(shape.segments) < 2 or not budget.allows("trying sizes of passes", _TRY_S):
            return {}
        self._report(f"reading in passes of {', '.join(str(n) for n in shape.segments)} tokens")
        tried = fastest_segment(engine, shape)
        let_go(self._plan.device)
        return tried

    def _reaches(self, engine: Engine) -> list[Reach]:
        plan = self._plan
        room = plan.host_bytes or _HOST_SHARE * (free_memory() or float("inf"))
        found, too_long = reaches(engine.info.layers, plan.lengths, room, plan.codec)
        for n in too_long:
            why = f"does not fit {room / 2**30:.0f} GiB of host memory under codec {plan.codec}"
            self.outcome.budget.leave_out(f"a history of {in_short(n)}", why)
        return found
