"""`longmem bench decode`: does a reply take longer the more was said before it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from longmem.cli.bench.options import AsJson, Out
from longmem.cli.bench.scaling import (
    FullUpTo,
    HostBytes,
    Rounds,
    Settings,
    ShelfFolder,
    Tokens,
    about,
    engine_of,
    filled,
    lengths_of,
    progress,
    show,
    times,
)
from longmem.cli.common import NANO, Device, Model, readable_bytes

if TYPE_CHECKING:
    from longmem.bench.decode import DecodeRun


def decode(
    tokens: Tokens = None,
    rounds: Rounds = 7,
    full_up_to: FullUpTo = 128_000,
    host_bytes: HostBytes = None,
    changes: Settings = None,
    store: ShelfFolder = None,
    model: Model = NANO,
    device: Device = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Time per reply token by length of the history, against transformers' own cache and against a
    look-up at every token; bytes of the session's state against those of the full cache."""
    lengths = lengths_of(tokens)
    engine = engine_of(model, device, host_bytes, changes)
    from longmem.bench.decode import measure

    with filled(store, engine, lengths) as shelf:
        run = measure(engine, shelf, lengths, rounds, full_up_to, progress)
    show_decode(run, about(model, engine), out, as_json)


def show_decode(run: DecodeRun, named: dict[str, Any], out: Path | None, as_json: bool) -> None:
    """Print a run, and write it where that was asked for."""
    from longmem.bench.decode import DENSE_STEPS, REPLY_TOKENS

    found: dict[str, Any] = run.figures()
    rows = []
    for at, time in enumerate(run.recycled):
        dense = run.dense[at] if at < len(run.dense) else None
        row = [f"{time.history:,}", f"{time.ms_per_token:.3f}"]
        row += [times(time.ms_per_token / run.recycled[0].ms_per_token)]
        row += [f"{run.every[at].ms_per_token:.3f}", times(found["every_token_to_recycled"][at])]
        row += [f"{dense.ms_per_token:.3f}" if dense else ""]
        row += [times(found["dense_to_recycled"][at] if dense else None)]
        row += [readable_bytes(time.state_bytes)]
        row += [readable_bytes(dense.state_bytes) if dense else ""]
        rows.append(row)
    columns = ["tokens", "ms/token", "to shortest", "every token", "slower", "dense", "slower"]
    steps = {"reply_tokens": REPLY_TOKENS, "dense_steps": DENSE_STEPS}
    show(
        "Time per reply token",
        [*columns, "state", "dense state"],
        rows,
        {**named, **steps, "decode": found},
        out,
        as_json,
    )
