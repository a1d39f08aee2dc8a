"""`longmem bench`: the measurements behind the figures in README and docs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longmem.cli.common import NANO, AsJson, Device, Model, load_engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from longmem import Engine
    from longmem.bench.passkey import PassKey
    from longmem.bench.recall import RecallRun

app = typer.Typer(help="Measure speed and recall on this machine.", no_args_is_help=True)


@app.command()
def decode(
    history: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Tokens of history; give it twice or more.  [default: 10000 200000]"
        ),
    ] = None,
    model: Model = NANO,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Time per reply token against the length of the history."""
    from longmem.bench.decode import REPLY_TOKENS, measure

    engine = load_engine(model, device)
    results = measure(engine, history or (10_000, 200_000), report=typer.echo)
    base = results[0].ms_per_token
    for r in results:
        ratio = r.ms_per_token / base
        typer.echo(f"{r.history:>10,} tokens  {r.ms_per_token:7.3f} ms/token  ratio {ratio:.3f}")
    if as_json:
        rows = [{**asdict(r), "ratio_to_first": r.ms_per_token / base} for r in results]
        typer.echo(_json({"model": model, "reply_tokens": REPLY_TOKENS, "decode": rows}))


@app.command()
def recall(
    tokens: Annotated[int, typer.Option(min=1, help="Tokens per dialogue.")] = 20_000,
    seeds: Annotated[int, typer.Option(min=1, help="How many dialogues.")] = 10,
    first_seed: Annotated[int, typer.Option(min=0, help="Seed of the first one.")] = 0,
    unseen: Annotated[bool, typer.Option("--unseen", help="What nano was not trained on.")] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A memory setting; may be repeated."),
    ] = None,
    model: Model = NANO,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Share of facts recalled, through the memory and from the local window alone.

    A reply is right if it holds the whole expected value, ignoring case. Every share comes with
    its 95 % Wilson interval.
    """
    engine = _with(load_engine(model, device), changes or [])
    from longmem.bench.recall import measure

    run = measure(engine, tokens, range(first_seed, first_seed + seeds), unseen, typer.echo)
    for line in _lines(run):
        typer.echo(line)
    if as_json:
        about = {"model": model, "seeds": seeds, "set": changes or []}
        typer.echo(_json({**about, **run.figures()}))


def _with(engine: Engine, changes: Sequence[str]) -> Engine:
    """The same model under changed memory settings, such as "topk=4" or "scorer=representative"."""
    if not changes:
        return engine
    from longmem import Engine

    settings = {}
    for change in changes:
        name, _, value = change.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value  # a bare word
    return Engine(engine.model, engine.tokenizer, engine.config.replace(**settings))


@app.command()
def passkey(
    tokens: Annotated[int, typer.Option(min=1, help="Length of each conversation.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another key.")] = 0,
    model: Model = NANO,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """One number told at five depths of a long chat, and asked for at its end."""
    engine = load_engine(model, device)
    from longmem.bench.passkey import measure

    runs = measure(engine, tokens, seed=seed, report=lambda run: typer.echo(_passkey_line(run)))
    if as_json:
        found = sum(run.found for run in runs)
        typer.echo(_json({"model": model, "tokens": tokens, "found": found, "of": len(runs)}))


def _json(figures: dict[str, Any]) -> str:
    """Figures with what they were measured on and by."""
    from longmem.bench.machine import command, machine

    return json.dumps({"command": command(), **figures, "machine": machine()})


def _passkey_line(run: PassKey) -> str:
    verdict = "found" if run.found else f"not found ({run.reply!r})"
    return f"depth {run.depth:>4.0%} of {run.tokens:,} tokens: {run.key} {verdict}"


def _lines(run: RecallRun) -> list[str]:
    from longmem.bench.recall import share

    answers = run.answers
    kinds = sorted({answer.question.kind for answer in answers})
    return [
        "",
        f"recall       {share(answers)}",
        f"window only  {share(run.window_answers)}",
        f"updated      {share(a for a in answers if a.question.updated)}",
        *(f"  {k:<11}{share(a for a in answers if a.question.kind == k)}" for k in kinds),
        f"{run.tokens:,} tokens per dialogue, {run.seconds:.0f} s",
    ]
