"""What was aimed at, what was measured, and whether it was reached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import isclose

from longmem.bench.gpu.decode import StepTimes
from longmem.bench.gpu.dense import DenseTime
from longmem.bench.gpu.ingest import IngestRun
from longmem.bench.gpu.memory import growth
from longmem.bench.gpu.sessions import SessionsTime
from longmem.bench.gpu.shapes import KIB
from longmem.bench.gpu.walk import Walked

K64, K128, K512, M1 = (n * KIB for n in (64, 128, 512, 1024))


@dataclass(frozen=True)
class Aim:
    """One aim.

    Args:
        what: is measured, in words.
        asked: the bound.
        most: whether it is an upper bound; else a lower one.
        measured: the figure; None where there is none.
    """

    what: str
    asked: float
    most: bool
    measured: float | None

    @property
    def reached(self) -> bool | None:
        """None where nothing was measured."""
        if self.measured is None:
            return None
        if isclose(self.measured, self.asked, rel_tol=1e-9):
            return True
        return self.measured < self.asked if self.most else self.measured > self.asked

    def row(self) -> dict[str, object]:
        """JSON-able."""
        return {**asdict(self), "reached": self.reached}


def aims(
    walked: Walked,
    ingest: IngestRun | None,
    sessions: Sequence[SessionsTime],
    weights_ms: float | None,
) -> list[Aim]:
    """All aims, with what there is of them.

    Args:
        walked: steps, transformers' steps and memory, by length.
        ingest: how fast histories were read.
        sessions: rates by number of sessions.
        weights_ms: the time to read the weights of a step once; None where it was not measured.
    """
    last = best_steps(walked.steps).get(M1)
    faster = _faster(walked)
    return [
        Aim("recycled step at 1M, in readings of the weights", 1.4, True,
            last.recycled / weights_ms if last and weights_ms else None),
        Aim("refresh step at 1M, in recycled steps", 2.0, True,
            last.refresh / last.recycled if last else None),
        Aim("reading, share of the matrix rate", 0.5, False, ingest.share if ingest else None),
        Aim("peak of device memory at 1M, more than at 64K", 0.15, True,
            growth(walked.samples, K64, M1)),
        Aim("steps at 512K, times as fast as transformers'", 3.0, False, faster(K512)),
        Aim("steps at 128K, times as fast as transformers'", 1.6, False, faster(K128)),
        Aim("16 sessions, tokens per second of one", 8.0, False, _together(sessions, 16)),
    ]  # fmt: skip


def _faster(walked: Walked) -> Callable[[int], float | None]:
    """At a length: the fastest way of transformers over a step of ours, look-ups counted. Of ours those
    that torch does not compile: transformers' are not compiled either."""
    steps = best_steps([each for each in walked.steps if not each.compiled])

    def at(tokens: int) -> float | None:
        best = fastest_dense(walked.dense, tokens)
        return best / steps[tokens].step if best is not None and tokens in steps else None

    return at


def best_steps(steps: Sequence[StepTimes]) -> dict[int, StepTimes]:
    """By length, compiled or not, whichever recycles faster."""
    found: dict[int, StepTimes] = {}
    for each in steps:
        before = found.get(each.history)
        if before is None or each.recycled < before.recycled:
            found[each.history] = each
    return found


def fastest_dense(times: Sequence[DenseTime], tokens: int) -> float | None:
    """Milliseconds of transformers' fastest way at this length."""
    found = [t.median for t in times if t.history == tokens and t.median is not None]
    return min(found, default=None)


def _together(times: Sequence[SessionsTime], sessions: int) -> float | None:
    """Of so many sessions to one, look-ups counted."""
    rates = {each.sessions: each.rate for each in times}
    return rates[sessions] / rates[1] if {1, sessions} <= set(rates) else None
