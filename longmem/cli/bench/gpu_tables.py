"""What `longmem bench gpu` prints: a table per section, at most 100 columns wide, and the aims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from longmem.cli.common import readable_bytes

if TYPE_CHECKING:
    from longmem.bench.gpu.aims import Aim
    from longmem.bench.gpu.decode import StepTimes
    from longmem.bench.gpu.plan import Plan
    from longmem.bench.gpu.run import Outcome
    from longmem.bench.gpu.trust import Checked

Told = Table | str


def heading(plan: Plan) -> str:
    """What is measured, and where; in the interpreter, what that is worth."""
    from longmem.bench.gpu.figures import INTERPRETED, hardware

    where = hardware(plan.device).get("name", str(plan.device))
    first = f"{plan.shape.about}; {where}"
    return f"{first}\n{INTERPRETED}" if plan.interpreted else first


def told(section: str, outcome: Outcome) -> Iterator[Told]:
    """What one part of a run is to print."""
    yield from _TOLD[section](outcome)


def closing(outcome: Outcome) -> Iterator[Told]:
    """The aims, what was refused, and what was left out."""
    if outcome.aimed:
        yield from _aims(outcome.aims)
        yield ""
    for section, why in outcome.refused.items():
        yield f"Not told: {section}, {why}."
    for section, why in outcome.broken.items():
        yield f"Broke off: {section}, {why}."
    for each in outcome.budget.left_out:
        yield f"Left out: {each['what']}; {each['why']}."
    yield f"{outcome.budget.spent:,.0f} s in all."


def _check(outcome: Outcome) -> Iterator[Told]:
    trust = outcome.trust
    rows = []
    for op in dict.fromkeys(each.op for each in (*trust.ops, *trust.steps)):
        mine = [each for each in (*trust.ops, *trust.steps) if each.op == op]
        wrong = [each for each in mine if not each.right]
        rows.append([op, f"{len(mine)}", f"{len(wrong) or ''}", _worst(mine)])
    yield "Comparisons with the twins, naive ones at ragged sizes; differences as shares of what is allowed"
    yield _table(["op", "comparisons", "wrong", "largest"], rows, 1)
    bad = [each for each in (*trust.ops, *trust.steps) if not each.right]
    if bad:
        yield "Wrong:"
        yield _table(["op", "case", "D", "dtype", "why"], [_of_wrong(each) for each in bad], 5)
    rates = outcome.rates
    if rates is not None and not outcome.plan.interpreted:
        yield f"Copy on the device {rates.copy / 1e12:.3f} TB/s, bytes read and written."
        size = f"{rates.matrix_size:,} x {rates.matrix_size:,}"
        yield f"Product of two {size} matrices {rates.matrix / 1e12:.2f} TFLOP/s."
        if rates.link:
            yield f"From pinned host memory {rates.link / 1e9:.1f} GB/s."


def _roofline(outcome: Outcome) -> Iterator[Told]:
    rows = [
        [
            f"{each.op}: {each.name}",
            readable_bytes(each.bytes),
            f"{each.flops / 1e9:,.2f}",
            f"{1000 * each.floor_ms:,.1f}",
            f"{1000 * each.ms:,.1f}" if each.ms is not None else each.why,
            f"{each.share:.0%}" if each.share is not None else "",
        ]
        for each in outcome.roofline
    ]
    columns = ["op", "bytes", "GFLOP", "floor us", "us", "of floor"]
    yield "Each op against the least time its bytes and operations take"
    yield _table(columns, rows, 1)


def _history(outcome: Outcome) -> Iterator[Told]:
    if outcome.walked.steps:
        yield from _decode(outcome)
    if outcome.ingest is not None:
        yield ""
        yield from _ingest(outcome)
    if outcome.walked.samples:
        yield ""
        yield from _memory(outcome)


def _decode(outcome: Outcome) -> Iterator[Told]:
    from longmem.bench.gpu.aims import fastest_dense
    from longmem.bench.gpu.plan import in_short

    rows, weights = [], outcome.weights_ms
    for each in outcome.walked.steps:
        dense = fastest_dense(outcome.walked.dense, each.history)
        rows.append(
            [
                in_short(each.history),
                each.codec,
                _way(each, outcome.walked.graphs),
                f"{each.recycled:.2f}",
                _times(each.recycled, weights),
                f"{each.refresh:.2f}",
                _times(each.refresh, each.recycled),
                f"{each.step:.2f}",
                f"{each.reply_ms:.2f}" if each.reply_ms else "",
                f"{dense:.2f}" if dense else "",
                _times(dense, each.step),
            ]
        )
    columns = [
        "tokens",
        "codec",
        "steps",
        "recycled",
        "x weights",
        "refresh",
        "x recycled",
        "step",
        "reply",
    ]
    floor = f"; reading the weights once takes {weights:.2f} ms" if weights else ""
    yield f"Milliseconds per decode step{floor}"
    yield _table([*columns, "dense", "x step"], rows, 3)


def _way(steps: StepTimes, graphs: Mapping[str, Mapping[str, Any]]) -> str:
    """How steps were launched."""
    if steps.compiled:
        return "compiled"
    found = graphs.get(steps.codec, {})
    return "graph" if found.get("used") and not found.get("refused") else "no graph"


def _ingest(outcome: Outcome) -> Iterator[Told]:
    ingest = outcome.ingest
    assert ingest is not None
    rows = [
        [
            f"{stretch.start:,} .. {stretch.stop:,}",
            codec,
            f"{stretch.tokens_per_s:,.0f}",
            f"{stretch.tokens_per_s * flops / 1e12:,.3f}",
            f"{stretch.tokens_per_s * flops / ingest.matrix:.1%}",
        ]
        for codec, stretch, flops in ingest.each
    ]
    yield f"Reading in passes of {ingest.segment_tokens:,} tokens"
    yield _table(["tokens", "codec", "tokens/s", "TFLOP/s", "of matrix rate"], rows, 2)


def _memory(outcome: Outcome) -> Iterator[Told]:
    from longmem.bench.gpu.plan import in_short

    rows = [
        [
            in_short(each.history),
            each.codec,
            readable_bytes(each.peak),
            readable_bytes(each.steady),
            readable_bytes(each.weights),
            readable_bytes(each.session),
            readable_bytes(each.index),
            readable_bytes(each.host),
        ]
        for each in outcome.walked.samples
    ]
    columns = [
        "tokens",
        "codec",
        "peak",
        "steady",
        "weights",
        "session",
        "its index",
        "on the host",
    ]
    yield "Device memory, and blocks in host memory"
    yield _table(columns, rows, 2)


def _sessions(outcome: Outcome) -> Iterator[Told]:
    first = outcome.sessions[0] if outcome.sessions else None
    rows = [
        [
            f"{each.sessions}",
            f"{each.recycled_rate:,.0f}",
            _times(each.recycled_rate, first.recycled_rate if first else None),
            f"{each.rate:,.0f}",
            f"{each.history:,}",
        ]
        for each in outcome.sessions
    ]
    columns = ["sessions", "tokens/s", f"to {first.sessions if first else 1}"]
    yield "Sessions at once: recycled steps, and with look-ups counted"
    yield _table([*columns, "with look-ups", "tokens of each"], rows, 0)


def _aims(aims: Sequence[Aim]) -> Iterator[Told]:
    rows = []
    for aim in aims:
        measured = "" if aim.measured is None else f"{aim.measured:.2f}"
        reached = {None: "not measured", True: "yes", False: "no"}[aim.reached]
        bound = f"{'at most' if aim.most else 'at least'} {aim.asked:g}"
        rows.append([aim.what, bound, measured, reached])
    yield _table(["aim", "asked", "measured", "reached"], rows, 1)


def _worst(mine: Sequence[Checked]) -> str:
    errors = [each.error for each in mine if each.error is not None]
    return f"{max(errors):.2f}" if errors else ""


def _of_wrong(each: Checked) -> list[str]:
    why = each.why or f"{each.error} of what is allowed"
    return [each.op, each.name, f"{each.dim}", each.dtype, why]


def _times(value: float | None, base: float | None) -> str:
    return f"{value / base:,.2f}x" if value and base else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    """A table whose first `left` columns are words."""
    table = Table(box=None)
    for at, name in enumerate(columns):
        if at < left:
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


_TOLD: dict[str, Callable[[Outcome], Iterator[Told]]] = {
    "check": _check,
    "roofline": _roofline,
    "history": _history,
    "sessions": _sessions,
    "others": _check,
}
