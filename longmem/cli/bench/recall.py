"""`longmem bench recall`: what memories recall, by task, length and preset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longmem.cli.bench.options import (
    AsJson,
    Changes,
    FirstSeed,
    Folder,
    Out,
    names,
    numbers,
    training_tokens,
)
from longmem.cli.bench.output import Bar, screen, write_json
from longmem.cli.bench.table import tables
from longmem.cli.common import NANO, Device, Model, check_writable, load_engine

if TYPE_CHECKING:
    from longmem import Engine
    from longmem.bench.methods import Method
    from longmem.bench.tasks import Task

Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="Names with commas, or all; may be repeated.",
        show_default="conversation",
    ),
]
Lengths = Annotated[
    list[str] | None,
    typer.Option(
        "--tokens",
        help="Tokens per prompt, with commas; may be repeated.",
        show_default="20000",
    ),
]
Vary = Annotated[
    list[str] | None,
    typer.Option(
        "--vary",
        metavar="NAME=A,B",
        help="Take every preset with each of these values; several make a grid.",
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot", callback=check_writable, help="Draw recall over length and depth (PNG, SVG)."
    ),
]
Training = Annotated[
    int | None,
    typer.Option(
        "--training-tokens",
        min=0,
        help="Tokens at which the model is asked by itself; 0: it is not.",
        show_default="256 for nano, else the trained positions; at most --tokens",
    ),
]


def recall(
    task: Tasks = None,
    tokens: Lengths = None,
    presets: Annotated[
        str | None,
        typer.Option(
            help="Memories to compare, with commas; see longmem.presets.",
            show_default="longmem,streaming-llm; with --vary longmem",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many prompts.")] = 10,
    first_seed: FirstSeed = 0,
    questions: Annotated[int, typer.Option(min=0, help="Most per prompt; 0: all.")] = 0,
    changes: Changes = None,
    vary: Vary = None,
    unseen: Annotated[bool, typer.Option("--unseen", help="What nano was not trained on.")] = False,
    training: Training = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Also tasks the model cannot do by itself.")
    ] = False,
    store: Folder = None,
    model: Model = NANO,
    device: Device = None,
    plot: Plot = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Share of what was told that is recalled, by task, length and memory.

    Every preset is told the same prompts and asked the same questions, in the sizes of the model's
    own settings; streaming-llm is the local window only. Before that the model is asked
    by itself, at a length it was trained on: where it answers less than half, no memory can be
    blamed. Shares come with their 95 % Wilson interval.
    """
    lengths = numbers(tokens or ["20000"], "--tokens")
    from longmem.bench.recall import Plan, measure

    if plot is not None:
        from longmem.bench.plot import check_plot

        check_plot(plot)
    chosen = _tasks(task or ["conversation"], unseen)
    engine = load_engine(model, device)
    plan = Plan(
        tasks=chosen,
        lengths=lengths,
        seeds=range(first_seed, first_seed + seeds),
        methods=_methods(engine, presets, changes or [], vary or []),
        questions=questions,
        training_tokens=training_tokens(model, engine, lengths) if training is None else training,
        anyway=anyway,
        folder=store,
    )
    with Bar() as bar:
        run = measure(engine, plan, bar)
    for each in tables(run, plan):
        screen().print(each, "")
    if as_json or out is not None:
        from longmem.bench.figures import figures

        write_json({"model": model, **figures(run, plan)}, out, as_json)
    if plot is not None:
        from longmem.bench.plot import draw

        draw(run, plan, model, plot)


def _tasks(given: list[str], unseen: bool) -> list[Task]:
    from longmem.bench.tasks import TASKS, get_task
    from longmem.bench.tasks.conversation import Conversation
    from longmem.errors import ConfigError

    chosen = names(given)
    if not chosen:
        raise ConfigError("--task names no task; leave it out, or name one, such as --task passkey")
    found = [get_task(name) for name in (TASKS if chosen == ["all"] else chosen)]
    if not unseen:
        return found
    conversations = [task for task in found if isinstance(task, Conversation)]
    if len(conversations) < len(found):
        raise ConfigError("--unseen is for the tasks conversation and days; leave the others out")
    return [replace(task, unseen=True) for task in conversations]


def _methods(
    engine: Engine, presets: str | None, changes: list[str], vary: list[str]
) -> list[Method]:
    from longmem.bench.methods import methods, parse_changes, parse_vary

    default = "longmem" if vary else "longmem,streaming-llm"
    chosen = names(presets if presets is not None else default)
    return methods(engine.config, chosen, parse_changes(changes), parse_vary(vary))
