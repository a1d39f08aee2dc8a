"""A recall run as a picture: recall over length and over depth, one line per memory."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from longmem.bench.exam import Answer
from longmem.bench.recall import Cell, Plan, RecallRun
from longmem.bench.reference import Reference
from longmem.bench.wilson import Share
from longmem.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette, which the colour-blind can tell apart; markers differ as well."""
_MARKERS = "osD^vP*X"
_BINS = 10
_DODGE = 0.008
"""Lines that lie on each other are moved apart by so much of the axis."""


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be drawn, before anything is measured.

    Raises:
        ConfigError: matplotlib is missing, or the file's ending is no picture.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; install it with pip install 'longmem[plot]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"--plot {path}: end the name in .png, .svg or .pdf")


def draw(run: RecallRun, plan: Plan, model: str, path: Path) -> None:
    """Write the picture: one row of two panels per task that was measured."""
    from matplotlib.figure import Figure

    tasks = [name for name in dict.fromkeys(cell.task for cell in run.cells)]
    if not tasks:
        raise ConfigError(f"nothing was measured, so there is nothing to draw in {path}")
    names = [method.name for method in plan.methods]
    figure = Figure(figsize=(11, 3.6 * len(tasks) + 0.7), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False, sharey=True)
    for (left, right), task in zip(panels, tasks, strict=True):
        cells = [cell for cell in run.cells if cell.task == task]
        _over_length(left, cells, names, run.references.get(task))
        _over_depth(right, cells, names)
        left.set_title(f"{task}, {model}: by length")
        right.set_title(f"{task}, {model}: by depth")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _over_length(
    panel: Axes, cells: list[Cell], names: list[str], reference: Reference | None
) -> None:
    lengths = sorted({cell.tokens for cell in cells})
    for i, name in enumerate(names):
        mine = sorted((c for c in cells if c.method == name), key=lambda c: c.tokens)
        at = [c.tokens * (1 + _DODGE * 2 * (i - len(names) / 2)) for c in mine]
        _line(panel, i, name, at, [c.score for c in mine])
    if reference is not None and reference.share is not None:
        label = "the model by itself, at a length it was trained on"
        panel.axhline(reference.share.value, color="0.5", ls=":", label=label)
    panel.set_xscale("log")
    panel.set_xticks(lengths, [f"{n:,}" for n in lengths])
    panel.minorticks_off()
    panel.set_xlim(lengths[0] / 1.3, lengths[-1] * 1.3)
    _frame(panel, "tokens of history")
    panel.set_ylabel("recall (95 % interval)")


def _over_depth(panel: Axes, cells: list[Cell], names: list[str]) -> None:
    """All lengths together, in tenths of the history, or fifths where questions are few."""
    per_memory = sum(len(cell.answers) for cell in cells) / len(names)
    count = _BINS if per_memory >= 10 * _BINS else _BINS // 2
    for i, name in enumerate(names):
        bins: list[list[Answer]] = [[] for _ in range(count)]
        for answer in (a for cell in cells if cell.method == name for a in cell.answers):
            bins[min(int(answer.question.depth * count), count - 1)].append(answer)
        full = [b for b, answers in enumerate(bins) if answers]
        at = [(b + 0.5) / count + _DODGE * (i - len(names) / 2) for b in full]
        shares = [Share(sum(a.score for a in bins[b]), len(bins[b])) for b in full]
        _line(panel, i, name, at, shares)
    panel.set_xlim(0, 1)
    panel.set_xticks([i / 5 for i in range(6)], [f"{20 * i} %" for i in range(6)])
    _frame(panel, "where in the history it was told")


def _line(panel: Axes, i: int, name: str, at: list[float], shares: list[Share]) -> None:
    below = [max(0.0, s.value - s.interval[0]) for s in shares]
    above = [max(0.0, s.interval[1] - s.value) for s in shares]
    drawn = panel.errorbar(
        at, [share.value for share in shares], yerr=[below, above], label=name,
        color=_COLOURS[i % len(_COLOURS)], marker=_MARKERS[i % len(_MARKERS)],
        ls=("-", "--", "-.")[i // len(_COLOURS) % 3],
        markersize=6, linewidth=1.8, elinewidth=1.0, capsize=2,
    )  # fmt: skip
    for part in (*drawn[1], *drawn[2]):
        part.set_alpha(0.4)  # intervals lie behind the lines


def _frame(panel: Axes, label: str) -> None:
    panel.set_xlabel(label)
    panel.set_ylim(-0.04, 1.04)
    panel.set_yticks([i / 5 for i in range(6)], [f"{20 * i} %" for i in range(6)])
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
