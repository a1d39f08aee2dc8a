"""`longmem calibrate`: gates of the compressive memory from sample text, without training."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from longmem.cli.calibrate_report import show
from longmem.cli.common import NANO, AsJson, Device, Model, console, load_engine, read_utf8
from longmem.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from longmem import Engine


class Rule(StrEnum):
    """`Compressive.rule`."""

    LINEAR = "linear"
    DELTA = "delta"
    DELTA_LITERAL = "delta_literal"


class FeatureMap(StrEnum):
    """`Compressive.feature_map`."""

    ELU = "elu"
    DPFP = "dpfp"
    LEARNED = "learned"


class Mix(StrEnum):
    """`Compressive.mix`."""

    GATE = "gate"
    LSE = "lse"


Text = Annotated[Path, typer.Option(help="Sample text, UTF-8, of the kind that will be read.")]
Out = Annotated[Path, typer.Option(help="The gate file to write (safetensors).")]
Tokens = Annotated[int, typer.Option(min=1, help="Most tokens of the text to use.")]
Window = Annotated[int | None, typer.Option(min=2, help="n_local.  [default: the model's]")]
Context = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of full attention to come near to.  [default: 8 windows]"),
]
Separator = Annotated[
    str | None, typer.Option(help="Each time this is read, a new session starts with it.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A memory setting, such as topk=2 or compressive.decay=0.9.",
    ),
]
Features = Annotated[bool, typer.Option("--features", help="Fit feature maps first (LoLCATs).")]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of that, per layer.  [default: 400]")]


def calibrate(
    text: Text,
    out: Out,
    model: Model = NANO,
    tokens: Tokens = 65_536,
    window: Window = None,
    context: Context = None,
    separator: Separator = None,
    rule: Annotated[Rule, typer.Option(help="How memory is updated.")] = Rule.LINEAR,
    feature_map: Annotated[
        FeatureMap | None, typer.Option(help="sigma.  [default: elu]", show_default=False)
    ] = None,
    features: Features = False,
    feature_steps: Steps = None,
    mix: Annotated[Mix, typer.Option(help="How memory joins attention.")] = Mix.GATE,
    set_: Set = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Open the compressive memory's gates as far as sample text bears it out, without training.

    The last fifth of the text is held out. Layers whose gates do not lower the model's loss on it
    stay closed, so that a gate file never makes it worse there.
    """
    sigma = _feature_map(feature_map, features)
    if feature_steps is not None and sigma != FeatureMap.LEARNED.value:
        raise ConfigError("--feature-steps are those of --features, which is not asked for; add it")
    content = read_utf8(text, "--text")
    _check_out(out)
    engine = load_engine(model, device)
    from longmem.calibration import calibrate as find
    from longmem.calibration.settings import settings
    from longmem.gate_file import save_gates, segment_of

    how = {"rule": rule.value, "feature_map": sigma, "mix": mix.value}
    changes = _changes(set_ or [], how)
    config = settings(engine.config, engine.info.max_positions, window, changes)
    assert config.compressive is not None
    context = context or min(engine.info.max_positions, 8 * config.n_local)
    screen = console()
    with _bars(screen) as watch:
        found = find(
            engine.model, engine.info, config, _texts(engine, content, separator, tokens),
            context=context, feature_steps=feature_steps or 400, watch=watch,
        )  # fmt: skip
    about = {"text": text.name, "held_out_loss": f"{found.kept.loss:.4f}"}
    compressive, segment = config.compressive, segment_of(config)
    save_gates(out, found.gates, engine.model, compressive, segment, **about)
    show(screen, found, config, out)
    if as_json:
        asked = {"model": model, "config": config.model_dump(mode="json"), "gates": str(out)}
        print(json.dumps({**asked, **found.figures()}))


def _feature_map(given: FeatureMap | None, features: bool) -> Any:
    if features and given not in (None, FeatureMap.LEARNED):
        raise ConfigError(
            f"--features fits the maps of --feature-map learned, and {given} has nothing to fit: leave "
            "out one of the two"
        )
    return FeatureMap.LEARNED.value if features else (given or FeatureMap.ELU).value


def _check_out(out: Path) -> None:
    """Before minutes of work, not after them."""
    folder = out.parent
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder} to write {out.name} to; make it first")
    if out.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{out} cannot be written; give another --out")


def _changes(set_: list[str], how: dict[str, str]) -> dict[str, Any]:
    """What `--set` asks for, and how the compressive memory works."""
    from longmem.bench.methods import parse_changes

    changes: dict[str, Any] = {"compressive": dict(how)}
    for change in parse_changes(set_):
        if change.preset is not None:
            raise ConfigError(
                f"--set {change.preset}:...: gates are calibrated for one memory, which is no preset; "
                f"write --set {'.'.join(change.path)}=VALUE"
            )
        if change.path == ("compressive",) or change.path[0] == "n_local":
            raise ConfigError(
                f"--set {change.path[0]}: use --window, --rule, --feature-map or --mix"
            )
        if change.path[0] == "compressive":
            changes["compressive"][".".join(change.path[1:])] = change.value
        else:
            changes[".".join(change.path)] = change.value
    return changes


def _texts(engine: Engine, content: str, separator: str | None, most: int) -> list[Tensor]:
    """Each session's tokens ``[N]``; special tokens written in the text count as such."""
    import torch

    from longmem.first_tokens import first_tokens

    parts = [content]
    if separator:
        first, *rest = content.split(separator)
        parts = [first, *(separator + part for part in rest)]
    texts = []
    for part in parts:
        found = first_tokens(engine.tokenizer, part, most, add_special_tokens=False)
        ids = torch.tensor(found, dtype=torch.long)
        most -= len(ids)
        if len(ids):
            texts.append(ids)
    return texts


@contextmanager
def _bars(screen: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per stage, in tokens; the same stage again starts its bar anew."""
    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(bar_width=36),
        TextColumn("{task.completed:,.0f} tokens"),
        TimeElapsedColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=screen) as progress:

        def watch(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield watch
