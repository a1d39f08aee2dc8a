"""Time of a decode step by length of the history, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longmem.bench.gpu.plan import in_short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = {
    "recycled": ("longmem, recycled step", "#0072B2", "o"),
    "compiled": ("longmem, recycled step, compiled", "#000000", "v"),
    "step": ("longmem, look-ups counted", "#009E73", "s"),
    "refresh": ("longmem, refresh step", "#56B4E9", "^"),
}
_DENSE = ("#D55E00", "#E69F00", "#CC79A7", "0.5")
"""Okabe and Ito's colours."""


def draw(figures: Mapping[str, Any], path: Path) -> bool:
    """Write the picture of a run's figures; False where there is nothing to draw, or matplotlib is
    missing."""
    decode = figures["sections"].get("decode")
    if not decode or find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), layout="constrained")
    panel = figure.subplots()
    rows = decode["rows"]
    for name, (label, colour, marker) in _OURS.items():
        kind = "recycled" if name == "compiled" else name
        points = [
            (row["history"], row["median_ms"][kind])
            for row in rows
            if row["compiled"] == (name == "compiled")
        ]
        _line(panel, points, label, colour, marker, "-")
    for colour, way in zip(
        _DENSE, dict.fromkeys(row["way"] for row in decode["dense"]), strict=False
    ):
        points = [
            (row["history"], row["median_ms"])
            for row in decode["dense"]
            if row["way"] == way and row["median_ms"] is not None
        ]
        _line(panel, points, f"transformers, {way}", colour, "D", "--")
    weights = figures["weights"]["ms"]
    panel.axhline(weights, color="0.4", ls=":", label="reading the weights once")
    _frame(panel, sorted({row["history"] for row in (*rows, *decode["dense"])}))
    name = figures["hardware"].get("name") or "interpreted on a CPU: times mean nothing"
    panel.set_title(f"{figures['shape']['about']}; {name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return True


def _line(
    panel: Axes,
    points: Sequence[tuple[int, float]],
    label: str,
    colour: str,
    marker: str,
    style: str,
) -> None:
    if points:
        at, ms = zip(*sorted(points), strict=True)
        panel.plot(at, ms, label=label, color=colour, marker=marker, ls=style, linewidth=1.8)


def _frame(panel: Axes, lengths: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(lengths, [in_short(n) for n in lengths])
    panel.minorticks_off()
    panel.set_xlabel("tokens of history")
    panel.set_ylabel("ms per decode step")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8)
