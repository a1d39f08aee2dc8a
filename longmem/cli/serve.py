"""`longmem serve`: the HTTP server."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longmem.cli.common import NANO, Device, Model, StorePath, load_engine, open_store, read_utf8
from longmem.cli.quantities import parse_bytes
from longmem.errors import ConfigError

if TYPE_CHECKING:
    from longmem import Engine
    from longmem.adapters.server import ApiKey

_KEYS = "LONGMEM_API_KEYS"


class Diverge(StrEnum):
    """What to do where a message list departs from its session."""

    FORK = "fork"
    ROLLBACK = "rollback"
    REFUSE = "refuse"


Host = Annotated[
    str, typer.Option(help="Address to listen on; others than this machine's own need a key.")
]
Port = Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")]
Name = Annotated[
    str | None, typer.Option(help="What clients call the model; its name or folder by default.")
]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key",
        metavar="NAME:KEY",
        help=f"Let the owner NAME in with KEY; may be repeated. Other users of the machine may see it "
        f"here: rather use --api-keys, or {_KEYS} in the environment.",
    ),
]
KeysFile = Annotated[
    Path | None, typer.Option("--api-keys", help="A file with one NAME:KEY per line.")
]
Operators = Annotated[
    list[str] | None,
    typer.Option("--operator", metavar="NAME", help="May read /metrics; may be repeated."),
]
Concurrent = Annotated[
    int, typer.Option(min=1, help="Requests of one owner at a time; more get status 429.")
]
Rate = Annotated[
    float | None, typer.Option(min=0.001, help="Most requests of one owner per minute.")
]
MaxBody = Annotated[
    int | None,
    typer.Option(parser=parse_bytes, metavar="SIZE", help="Longest request; 16MiB by default."),
]
MaxValues = Annotated[
    int,
    typer.Option(min=1, help="Most JSON values in a request; a message is two or three or more."),
]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest reply a request may ask for.")]
Idle = Annotated[
    float, typer.Option(min=1, help="Seconds after which an idle session leaves memory.")
]
DeviceBytes = Annotated[
    int | None,
    typer.Option(parser=parse_bytes, metavar="SIZE", help="Of all sessions in device memory."),
]
HostBytes = Annotated[
    int | None,
    typer.Option(parser=parse_bytes, metavar="SIZE", help="Of all sessions in host memory."),
]
Preset = Annotated[str, typer.Option(help="Memory settings to start from; see longmem.presets.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A memory setting, such as topk=8; may be repeated."
    ),
]
Drain = Annotated[
    float, typer.Option(min=0.1, help="Seconds that replies may take to end after SIGTERM.")
]


def serve(
    model: Model = NANO,
    store: StorePath = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = None,
    api_key: Keys = None,
    api_keys: KeysFile = None,
    operator: Operators = None,
    max_concurrent: Concurrent = 64,
    rate: Rate = None,
    max_body: MaxBody = None,
    max_values: MaxValues = 100_000,
    max_tokens: MaxTokens = 32_768,
    diverge: Annotated[
        Diverge, typer.Option(help="Where a message list departs from its session.")
    ] = Diverge.FORK,
    idle_seconds: Idle = 300.0,
    device_bytes: DeviceBytes = None,
    host_bytes: HostBytes = None,
    preset: Preset = "longmem",
    set_: Set = None,
    drain_seconds: Drain = 120.0,
    device: Device = None,
) -> None:
    """Serve OpenAI's chat and responses dialects; sessions live in the store.

    Ctrl-C or SIGTERM lets running replies end first.
    """
    try:
        from longmem.adapters.server import Settings, create_app, run
        from longmem.adapters.server.serve import check_address
    except ImportError as error:
        raise ConfigError(str(error)) from error  # names the extra

    settings = Settings(
        model=name or Path(model).name or model,
        keys=read_keys(api_key or (), api_keys),
        operators=tuple(operator or ()),
        max_concurrent=max_concurrent,
        rate=rate,
        max_body=max_body or 16 * 2**20,
        max_values=max_values,
        max_tokens=max_tokens,
        diverge=diverge.value,
        drain_seconds=drain_seconds,
    )
    check_address(host, settings)
    with open_store(store) as opened:  # first: a store in use is known before a model is loaded
        engine = with_memory(load_engine(model, device), preset, set_ or ())
        from longmem import SessionPool
        from longmem.dialogue import Dialogue

        with (
            SessionPool(
                engine,
                opened,
                device_bytes=device_bytes,
                host_bytes=host_bytes,
                idle_seconds=idle_seconds,
            ) as pool,
            Dialogue(engine, opened, pool=pool) as dialogue,
        ):
            run(create_app(dialogue, settings), host, port, announce=_announce)


def read_keys(given: Sequence[str], file: Path | None) -> tuple[ApiKey, ...]:
    """The keys of the command line, a file and the environment together.

    Raises:
        ConfigError: one is not written as NAME:KEY, or two owners share one.
        InputError: the file cannot be read.
    """
    from longmem.adapters.server import ApiKey

    texts = [*given, *re.split(r"[,\s]+", os.environ.get(_KEYS, ""))]
    if file is not None:
        lines = (line.strip() for line in read_utf8(file, "--api-keys").splitlines())
        texts += [line for line in lines if not line.startswith("#")]
    keys = []
    for text in filter(None, texts):
        owner, colon, key = text.partition(":")
        if not colon:
            raise ConfigError(
                "an API key is not written as NAME:KEY; put the owner's name in front"
            )
        keys.append(ApiKey(owner, key))
    owners: dict[str, str] = {}
    for each in keys:
        if owners.setdefault(each.key, each.owner) != each.owner:
            raise ConfigError(
                f"owners {owners[each.key]!r} and {each.owner!r} have the same API key; give each "
                "one of its own"
            )
    return tuple(keys)


def with_memory(engine: Engine, preset: str, changes: Sequence[str]) -> Engine:
    """The engine under other memory settings, if any are asked for.

    Raises:
        ConfigError: there is no such preset or setting, or the settings cannot work.
    """
    from longmem import Engine
    from longmem.bench.methods import methods, parse_changes

    if preset == "longmem" and not changes:
        return engine
    (method,) = methods(engine.config, [preset], parse_changes(changes))
    return Engine(engine.model, engine.tokenizer, method.config)


def _announce(url: str) -> None:
    typer.echo(f"longmem listens on {url}")
