"""`longmem bench recycled`: what reusing the working set between two tokens costs and saves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from longmem.cli.bench.options import AsJson, Changes, FirstSeed, Out
from longmem.cli.bench.output import Bar, write_json
from longmem.cli.bench.table import percent
from longmem.cli.common import NANO, Device, Model, load_engine

if TYPE_CHECKING:
    from longmem.bench.recycled import RecycledRun


def recycled(
    task: Annotated[str, typer.Option(help="Whose questions are asked.")] = "conversation",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens per prompt.")] = 20_000,
    replies: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    first_seed: FirstSeed = 0,
    preset: Annotated[str, typer.Option(help="Whose recycling is tested.")] = "longmem",
    changes: Changes = None,
    reply_tokens: Annotated[
        int, typer.Option(min=0, help="Go on to so many tokens, past the end; 0: do not.")
    ] = 0,
    model: Model = NANO,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """A recycling policy against looking blocks up at every token: answers, agreement, time.

    Set the policy with --set, such as --set stride=16 or --set recycling=dynamic. The replies of
    the reference, which looks up at every token, are fed to both; agreement is how often
    the likeliest next token is the same.
    """
    engine = load_engine(model, device)
    from longmem.bench.methods import methods, parse_changes
    from longmem.bench.recycled import every_step, measure
    from longmem.bench.tasks import get_task

    (policy,) = methods(engine.config, [preset], parse_changes(changes or []))
    with Bar() as bar:
        run = measure(
            engine, policy.config, get_task(task), tokens, replies, first_seed, reply_tokens, bar
        )
    for line in _lines(run):
        typer.echo(line)
    if as_json or out is not None:
        settings = {
            "policy": policy.config.model_dump(mode="json"),
            "reference": every_step(policy.config).model_dump(mode="json"),
        }
        about = {"model": model, "task": task, "tokens": tokens, "settings": settings}
        write_json({**about, **run.figures()}, out, as_json)


def _lines(run: RecycledRun) -> list[str]:
    found: dict[str, Any] = run.figures()
    pairs = run.pairs
    reference, policy = (
        run.recall([t.reference for t in run.trials]),
        run.recall([t.policy for t in run.trials]),
    )
    return [
        f"replies             {found['replies']}, {found['steps']} tokens after their first",
        f"top-1 agreement     {percent(run.agreement)}",
        f"recall, every step  {percent(reference)}",
        f"recall, policy      {percent(policy)}  (right only here: {pairs.only_second}, "
        f"only at every step: {pairs.only_first}, p = {pairs.p:.3g})",
        f"refresh steps       {found['refreshes_policy']} instead of "
        f"{found['refreshes_reference']}",
        f"look-ups of layers  {found['lookups_policy']} instead of {found['lookups_reference']}"
        f"{_fewer(found['lookup_ratio'])}",
        f"ms/token            {found['ms_per_token_policy']:.2f} instead of "
        f"{found['ms_per_token_reference']:.2f}",
    ]


def _fewer(ratio: float | None) -> str:
    return "" if ratio is None else f"  ({ratio:.1f} times fewer)"
