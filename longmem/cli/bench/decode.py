"""`longmem bench decode`: does a reply take longer the more was said before it?"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from longmem.cli.bench.output import write_json
from longmem.cli.common import NANO, AsJson, Device, Model, load_engine


def decode(
    history: Annotated[
        list[int] | None,
        typer.Option(
            min=1, help="Tokens of history; give it twice or more.", show_default="10000 200000"
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
        write_json({"model": model, "reply_tokens": REPLY_TOKENS, "decode": rows})
