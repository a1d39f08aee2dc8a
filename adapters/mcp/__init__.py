"""MCP server: an agent looks into a store of sessions, and recalls from one, by five tools.

`recall` reads the query with the model the session was written under; `list_sessions`,
`show_session`, `stats` and `forget_session` need the store alone. ``longmem mcp --store DIR`` runs it
over stdio. Needs ``pip install 'longmem[mcp]'``.
"""

from longmem.adapters.mcp.server import mcp_server

__all__ = ["mcp_server"]
