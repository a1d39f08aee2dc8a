"""`longmem calibrate`: gates of the compressive memory from sample text, without training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from longmem.cli.common import NANO, AsJson, Device, Model, console, load_engine
from longmem.errors import ConfigError, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from longmem import Engine, MemoryConfig
    from longmem.calibration import Calibration
    from longmem.calibration.report import Watch


class Rule(StrEnum):
    """`Compressive.rule`."""

    linear = "linear"
    delta = "delta"
    delta_literal = "delta_literal"


class FeatureMap(StrEnum):
    """`Compressive.feature_map`."""

    elu = "elu"
    dpfp = "dpfp"
    learned = "learned"


class Mix(StrEnum):
    """`Compressive.mix`."""

    gate = "gate"
    lse = "lse"


_SHAPE = "Blocks looked up beside the window."


def calibrate(
    text: Annotated[Path, typer.Option(help="Sample text, UTF-8, of the kind to be read later.")],
    out: Annotated[Path, typer.Option(help="The gate file to write (safetensors).")],
    model: Model = NANO,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the text to use.")] = 65_536,
    window: Annotated[
        int | None, typer.Option(min=2, help="n_local in tokens.  [default: the model's]")
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens of full attention to come near to.  [default: 8 windows, as trained]"
        ),
    ] = None,
    segments: Annotated[
        bool, typer.Option("--segments", help="Windows are segments of a grid (Infini-attention).")
    ] = False,
    topk: Annotated[int, typer.Option(min=0, help=_SHAPE)] = 0,
    max_blocks: Annotated[
        int | None, typer.Option(min=1, help="Most blocks kept for look-ups; older ones are dropped.")
    ] = None,
    rule: Annotated[Rule, typer.Option(help="How memory is updated.")] = Rule.delta,
    feature_map: Annotated[FeatureMap, typer.Option(help="sigma.")] = FeatureMap.elu,
    features: Annotated[
        bool, typer.Option("--features", help="Fit feature maps first: --feature-map learned.")
    ] = False,
    feature_steps: Annotated[int, typer.Option(min=1, help="Steps of that, per layer.")] = 400,
    mix: Annotated[Mix, typer.Option(help="How memory joins attention.")] = Mix.gate,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Open the compressive memory's gates as far as sample text bears it out, without training.

    The last fifth of the text is held out. Layers whose gates do not lower the model's loss on it
    stay closed, so that a gate file never makes it worse there.
    """
    if features and feature_map is FeatureMap.dpfp:
        raise ConfigError(
            "--features fits the maps of --feature-map learned; dpfp has nothing to fit: leave out one "
            "of the two"
        )
    compressive = {
        "rule": rule.value,
        "feature_map": FeatureMap.learned.value if features else feature_map.value,
        "mix": mix.value,
    }
    _check_paths(text, out)
    engine = load_engine(model, device)
    shape = {"topk": topk, "max_blocks": max_blocks, "segments": segments}
    config = _settings(engine, window, shape, compressive)
    context = context or min(engine.info.max_positions, 8 * config.n_local)
    ids = _read(engine, text)[:tokens]
    screen = console()
    with _bars(screen) as watch:
        from longmem.calibration import calibrate as find

        found = find(
            engine.model, engine.info, config, ids,
            context=context, feature_steps=feature_steps, watch=watch,
        )  # fmt: skip
    _save(out, found, engine, config, text)
    if as_json:
        print(json.dumps({"model": model, "text": str(text), "gates": str(out), **found.figures()}))
    else:
        _show(screen, found, config, engine.config, out)
