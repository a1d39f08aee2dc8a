"""Whether what is right was shown to be: no time is told of an op that failed its comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite

READING = frozenset({"working_set_attention", "block_scoring", "block_gather"})
"""Ops that reading a history goes through."""
STEPPING = frozenset({"step_attention"})
"""Ops that every decode step goes through."""
UNUSED = frozenset({"compressive", "recycled_attention"})
"""Ops that the settings measured here do not use."""
BUILT_ON = {
    "ingest": READING,
    "memory": READING,
    "decode": READING | STEPPING,
    "sessions": READING | STEPPING,
}
"""By section, the ops it is made of; an op that is named nowhere here counts in all of them."""


@dataclass(frozen=True)
class Checked:
    """One comparison of an op with its twin.

    Args:
        op, name: as `longmem.bench.kernels.case.Case` has them.
        shape: the sizes, in words.
        dim: D.
        dtype: of keys and values.
        error: the greatest difference, as a share of what is allowed; None where it broke off.
        why: what broke it off.
    """

    op: str
    name: str
    shape: str
    dim: int
    dtype: str
    error: float | None
    why: str = ""

    @property
    def right(self) -> bool:
        """Whether it agrees."""
        return self.error is not None and isfinite(self.error) and self.error <= 1

    def row(self) -> dict[str, object]:
        """JSON-able; an error that is no number is told in words."""
        told = self.error if self.error is None or isfinite(self.error) else str(self.error)
        return {**asdict(self), "error": told, "right": self.right}


@dataclass(frozen=True)
class Trust:
    """All comparisons of a run.

    Args:
        ops: of ops with their twins.
        steps: of whole models with the same model without kernels; of op "graphs", whether a step was
            replayed. Without graphs steps are slower, and no less right.
    """

    ops: Sequence[Checked] = ()
    steps: Sequence[Checked] = field(default=())

    @property
    def right(self) -> bool:
        """Whether all agree."""
        return all(each.right for each in (*self.ops, *self.steps))

    def op_is_wrong(self, op: str) -> bool:
        """Whether a comparison of this op failed."""
        return any(each.op == op and not each.right for each in self.ops)

    def against(self, section: str) -> str | None:
        """Why no figures of this section are told; None: they may be."""
        wrong = {each.op for each in self.ops if not each.right} - UNUSED
        known, needed = READING | STEPPING, BUILT_ON[section]
        counts = sorted(op for op in wrong if op in needed or op not in known)
        if counts:
            return f"built on {', '.join(counts)}, which failed the comparison with its twin"
        if missing := sorted(needed - {each.op for each in self.ops}):
            return f"built on {', '.join(missing)}, which was not compared with its twin"
        bad = [each.name for each in self.steps if not each.right and each.op != "graphs"]
        if bad and section in ("decode", "sessions"):
            return f"the model's {', '.join(bad)} differ from those without kernels"
        return None

    def row(self) -> dict[str, object]:
        """JSON-able."""
        sides = {"ops": self.ops, "steps": self.steps}
        rows = {name: [each.row() for each in side] for name, side in sides.items()}
        return {"right": self.right, **rows}
