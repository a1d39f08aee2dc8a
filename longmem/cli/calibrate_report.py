"""What `longmem calibrate` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from longmem.calibration import Calibration, LayerReport
    from longmem.config import MemoryConfig

_COLUMNS = ("layer", "heads open", "share", "largest", "error removed", "loss alone", "")


def show(screen: Console, found: Calibration, config: MemoryConfig, out: Path) -> None:
    """The table of layers, the verdict, and the settings that use the file."""
    from longmem.calibration.settings import snippet

    screen.print(
        f"\n{found.tokens:,} tokens calibrated, {found.held_out:,} held out, contexts of "
        f"{found.context:,}, window {config.n_local}"
    )
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for column in table.columns[:-1]:
        column.justify = "right"
    for layer in found.layers:
        table.add_row(*_row(layer))
    screen.print(table)
    screen.print(_verdict(found))
    screen.print(f"\nWrote {out}. Use it with\n")
    screen.print("from longmem.config import Compressive, MemoryConfig")
    screen.print(snippet(config, out), soft_wrap=True)


def _row(layer: LayerReport) -> list[str]:
    alone = "-" if layer.loss_alone is None else f"{layer.loss_alone:.4f}"
    figures = [f"{layer.share:.3f}", f"{layer.share_most:.3f}", f"{layer.removed:.1%}"]
    return [str(layer.layer), str(layer.heads_open), *figures, alone, _kept(layer)]


def _kept(layer: LayerReport) -> str:
    return "open" if layer.kept else "closed"


def _verdict(found: Calibration) -> str:
    kept = found.kept
    told = f"Held-out loss {kept.closed:.4f} nats per token with the gates closed, "
    if not kept.layers:
        return (
            f"{told}{kept.all_open:.4f} with those above open: that is no gain, in no layer alone "
            "either. All gates stay closed."
        )
    opened = f"{kept.loss:.4f} with those that stay open"
    if kept.loss == kept.all_open:
        return f"{told}{opened}."
    return f"{told}{opened} ({kept.all_open:.4f} with all: layers that do not help were closed)."
