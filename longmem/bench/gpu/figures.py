"""A run as one JSON-able object, and what of an earlier one is kept beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from longmem.bench.gpu.aims import aims
from longmem.bench.gpu.decode import StepTimes
from longmem.bench.gpu.walk import Walked

if TYPE_CHECKING:
    from longmem.bench.gpu.run import Outcome

COMMAND = "longmem bench gpu --out docs/results"
"""What measures everything."""
NO_GPU = (
    "No GPU was at hand: torch finds no CUDA device. Nothing was measured. On a machine with an "
    f"NVIDIA GPU, run: {COMMAND}"
)
INTERPRETED = (
    "This ran on a CPU, in Triton's interpreter, over a toy model, to see that every part of the "
    "benchmark works. Its times mean nothing."
)


def figures(outcome: Outcome) -> dict[str, Any]:
    """Everything that was found."""
    plan = outcome.plan
    return {
        "measured": not plan.interpreted,
        "why": INTERPRETED if plan.interpreted else "",
        "device": str(plan.device),
        "hardware": hardware(plan.device),
        "shape": {
            "name": plan.shape.name,
            "about": plan.shape.about,
            "model": dict(plan.shape.model),
        },
        "settings": outcome.settings,
        "rates": outcome.rates.row() if outcome.rates else None,
        "weights": {"bytes": outcome.weight_bytes, "ms": outcome.weights_ms},
        "sections": _sections(outcome),
        "aims": [aim.row() for aim in outcome.aims],
        "refused": outcome.refused,
        "broken": outcome.broken,
        "left_out": outcome.budget.left_out,
        "seconds": {**outcome.seconds, "all": outcome.budget.spent},
    }


def nothing_measured() -> dict[str, Any]:
    """The same where there is no GPU."""
    return {
        "measured": False,
        "why": NO_GPU,
        "to_measure": COMMAND,
        "sections": {},
        "aims": [aim.row() for aim in aims(Walked(), None, [], None)],
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """The GPU and what drives it; empty on a CPU."""
    if device.type != "cuda":
        return {}
    import triton

    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "bytes": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }


def with_earlier(now: dict[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """This run's figures, with the sections and aims of an earlier run that it did not measure.

    Only where commit, GPU and shape are the same; each kept section names the command it comes from.

    Args:
        now, earlier: as written to a file, with command, commit and machine.
    """
    alike = ("measured", "commit", "hardware", "shape")
    if not now["measured"] or any(now.get(name) != earlier.get(name) for name in alike):
        return now
    kept = {
        name: {"command": earlier["command"], **section}
        for name, section in earlier["sections"].items()
        if name not in now["sections"] and name not in now["refused"]
    }
    before = {aim["what"]: aim for aim in earlier["aims"]}
    merged = [
        aim if aim["measured"] is not None else before.get(aim["what"], aim) for aim in now["aims"]
    ]
    return {**now, "sections": {**now["sections"], **kept}, "aims": merged}


def _sections(outcome: Outcome) -> dict[str, Any]:
    """Those that were measured, each as an object."""
    walked, ingest = outcome.walked, outcome.ingest
    found: dict[str, Any] = {
        "check": outcome.trust.row(),
        "roofline": _rows(outcome.roofline),
        "decode": {
            **_rows(walked.steps, lambda each: _with_floor(each, outcome)),
            "dense": [each.row() for each in walked.dense],
            "graphs": walked.graphs,
        },
        "ingest": ingest.row() if ingest else {},
        "memory": _rows(walked.samples),
        "sessions": _rows(outcome.sessions),
    }
    return {
        name: section
        for name, section in found.items()
        if name == "check" or section.get("rows") or section.get("stretches")
    }


def _rows(
    found: Sequence[Any], row: Callable[[Any], dict[str, Any]] = lambda each: dict(each.row())
) -> dict[str, Any]:
    return {"rows": [row(each) for each in found]}


def _with_floor(times: StepTimes, outcome: Outcome) -> dict[str, Any]:
    weights = outcome.weights_ms
    return {**times.row(), "recycled_to_weights": times.recycled / weights if weights else None}
