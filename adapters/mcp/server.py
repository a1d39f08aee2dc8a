"""The MCP server of a store."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from longmem.adapters.mcp.tools import Tools
from longmem.errors import LongMemError

if TYPE_CHECKING:
    from mcp.server import MCPServer

    from longmem.engine import Engine
    from longmem.store import Store

P = ParamSpec("P")
R = TypeVar("R")

_INSTRUCTIONS = (
    "Conversations that a longmem model keeps in mind. Call list_sessions first; then recall to find "
    "what was said about something in one session, or show_session to read its turns in order."
)


def mcp_server(
    store: Store | Callable[[bool], Store],
    engine: Engine | Callable[[], Engine] | None = None,
    *,
    owner: str | None = None,
    name: str = "longmem",
) -> MCPServer:
    """The MCP server of a store; run it with ``mcp_server(...).run("stdio")``.

    Errors that longmem raises on purpose reach the client as tool errors with their text.

    Args:
        store: a store that stays open; or a function of `read_only` that opens it. The function is
            called for each tool call and its store closed afterwards, so that other processes may
            write to it meanwhile: only `forget_session` asks for a store to write to.
        engine: the model of the sessions, or a function that loads it, called once, at the first
            `recall`; without it `recall` is not offered.
        owner: serve this owner's sessions alone, under the ids they know them by; None: all, under
            their ids in the store.
        name: what the server calls itself.

    Raises:
        ImportError: mcp is not installed.
    """
    try:
        from mcp.server import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
        from mcp.types import ToolAnnotations
    except ImportError as error:
        raise ImportError(
            "the MCP server needs mcp 2 or newer; pip install 'longmem[mcp]'"
        ) from error

    def told(call: Callable[P, R]) -> Callable[P, R]:
        @wraps(call)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return call(*args, **kwargs)
            except (LongMemError, OSError, ImportError) as error:
                raise ToolError(str(error)) from error

        return wrapped

    server: MCPServer = MCPServer(name, instructions=_INSTRUCTIONS, log_level="WARNING")
    tools = Tools(store, engine, owner)
    reads = ToolAnnotations(read_only_hint=True, open_world_hint=False)
    offered: list[Callable[..., Any]] = [tools.list_sessions, tools.show_session, tools.stats]
    if engine is not None:
        offered.insert(0, tools.recall)
    for tool in offered:
        server.add_tool(told(tool), annotations=reads)
    deletes = ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)
    server.add_tool(told(tools.forget_session), annotations=deletes)
    return server
