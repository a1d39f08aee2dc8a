"""`longmem mcp`: the MCP server of a store, over stdin and stdout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from longmem.cli.common import NANO, Device, Model, StorePath, load_engine, open_store

if TYPE_CHECKING:
    from longmem import Engine
    from longmem.stores import SQLiteStore


def mcp(
    store: StorePath = None,
    model: Model = NANO,
    device: Device = None,
    owner: Annotated[str | None, typer.Option(help="Only this owner's sessions.")] = None,
) -> None:
    """Serve a store to agents by the Model Context Protocol, over stdin and stdout.

    The model is loaded when `recall` is first called. The store is opened read-only for each call,
    so another process may write to it meanwhile; only forget_session needs to be its one writer.
    """
    from longmem.adapters.mcp import mcp_server
    from longmem.errors import ConfigError

    def opened(read_only: bool) -> SQLiteStore:
        return open_store(store, read_only=read_only)

    def loaded() -> Engine:
        return load_engine(model, device)

    try:
        server = mcp_server(opened, loaded, owner=owner)
    except ImportError as error:
        raise ConfigError(str(error)) from error
    opened(True).close()  # a wrong --store is told now, not at the first call
    server.run("stdio")
