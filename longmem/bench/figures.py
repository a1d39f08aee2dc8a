"""A recall run as one JSON-able object."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from itertools import combinations
from typing import Any

from longmem.bench.exam import Answer, Cost
from longmem.bench.methods import Method
from longmem.bench.paired import pairs
from longmem.bench.recall import Cell, Plan, RecallRun
from longmem.bench.reference import Reference
from longmem.bench.wilson import Share

DEPTH_BINS = 10


def figures(run: RecallRun, plan: Plan) -> dict[str, Any]:
    """Settings per preset, references per task, one row per task, length and preset, and every two
    presets compared on the same questions."""
    return {
        "settings": {method.name: settings(method) for method in plan.methods},
        "seeds": list(plan.seeds),
        "references": [_reference(each) for each in run.references.values()],
        "rows": [row(cell) for cell in run.cells],
        "pairs": [
            _pair(a, b)
            for a, b in combinations(run.cells, 2)
            if (a.task, a.tokens) == (b.task, b.tokens)
        ],
    }


def settings(method: Method) -> dict[str, Any]:
    """All settings of a memory."""
    return method.config.model_dump(mode="json")


def row(cell: Cell) -> dict[str, Any]:
    """The figures of one memory on one task at one length; `scores` are in order of seeds."""
    score, found = cell.score, cell.found
    return {
        "task": cell.task,
        "tokens": cell.tokens,
        "preset": cell.method,
        "questions": score.total,
        "right": sum(answer.right for answer in cell.answers),
        "recall": round(score.value, 5),
        "recall_interval": _interval(score),
        "block_recall": _share(found) if found else None,
        "by_depth": by_depth(cell.answers),
        "by_label": _grouped(cell.answers, lambda answer: answer.question.label),
        **costs(cell.costs),
        "scores": [round(answer.score, 3) for answer in cell.answers],
    }


def by_depth(answers: Iterable[Answer]) -> dict[str, dict[str, Any]]:
    """Scores by where the evidence stands, in tenths of the history: "0.3" is 0.3 to 0.4."""
    last = DEPTH_BINS - 1
    return _grouped(
        answers, lambda a: str(min(int(a.question.depth * DEPTH_BINS), last) / DEPTH_BINS)
    )


def costs(prompts: list[Cost]) -> dict[str, Any]:
    """Times as means over all prompts, bytes of the largest."""
    steps = sum(cost.decode_steps for cost in prompts)
    tokens = sum(cost.tokens for cost in prompts)
    return {
        "tokens_read": round(tokens / len(prompts)),
        "read_tokens_per_s": round(tokens / sum(cost.read_seconds for cost in prompts), 1),
        "ms_per_token": round(
            1000 * sum(cost.decode_seconds for cost in prompts) / max(steps, 1), 3
        ),
        "refreshes": sum(cost.refreshes for cost in prompts),
        "recycled": sum(cost.recycled for cost in prompts),
        "bytes_device": max(cost.bytes_device for cost in prompts),
        "bytes_host": max(cost.bytes_host for cost in prompts),
        "bytes_disk": max(cost.bytes_disk for cost in prompts),
    }


def _grouped(
    answers: Iterable[Answer], group: Callable[[Answer], str]
) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[float]] = {}
    for answer in answers:
        groups.setdefault(group(answer), []).append(answer.score)
    return {name: _share(Share(sum(s), len(s))) for name, s in sorted(groups.items())}


def _share(share: Share) -> dict[str, Any]:
    value = round(share.value, 5)
    return {"value": value, "interval": _interval(share), "questions": share.total}


def _interval(share: Share) -> list[float]:
    return [round(end, 5) for end in share.interval]


def _reference(each: Reference) -> dict[str, Any]:
    score = _share(each.share) if each.share else None
    about = {"task": each.task, "tokens": each.tokens, "fewer": each.fewer}
    return {**about, "score": score, "able": each.able}


def _pair(a: Cell, b: Cell) -> dict[str, Any]:
    counts = pairs([x.right for x in a.answers], [x.right for x in b.answers])
    about = {"task": a.task, "tokens": a.tokens, "first": a.method, "second": b.method}
    return {**about, **asdict(counts), "p": round(counts.p, 6)}
