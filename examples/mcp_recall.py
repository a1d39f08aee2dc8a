"""An MCP client looks into a store of conversations through `longmem mcp`, on the CPU.

Usage: python examples/mcp_recall.py [store folder]

An agent's host would start the server itself, with a configuration like
``{"command": "longmem", "args": ["mcp", "--store", "chats"]}``. Needs ``pip install 'longmem[mcp]'``.
"""

import asyncio
import sys

from mcp import Client, StdioServerParameters

from longmem import Engine
from longmem.stores import SQLiteStore


def remember(folder: str) -> None:
    """A conversation longer than the model's window, in which one thing matters."""
    with SQLiteStore(folder) as store, Engine.nano().session("alice", store=store) as session:
        session.add([("user", "Bob's home town is Bergen."), ("assistant", "I wrote it down.")])
        for day in range(1, 41):
            text = f"On day {day} it rained, we had tea, and nothing else happened that matters."
            session.add([("user", text), ("assistant", "Okay, I will remember that.")])


async def look(folder: str) -> None:
    """The tools an agent is offered, and two of them called."""
    server = StdioServerParameters(
        command=sys.executable, args=["-P", "-m", "longmem.cli", "mcp", "--store", folder]
    )
    async with Client(server) as client:
        tools = await client.list_tools()
        print("tools:", ", ".join(tool.name for tool in tools.tools))
        listed = await client.call_tool("list_sessions", {})
        for each in listed.structured_content["result"]:
            print(f"session {each['id']}: {each['turns']} turns, {each['tokens']} tokens")
        query = {"session_id": "alice", "query": "What is Bob's home town?", "k": 2}
        found = await client.call_tool("recall", query)
        for each in found.structured_content["result"]:
            print(f"{each['source']:>6}  turn {each['turn']}: {each['text']}")


if __name__ == "__main__":
    folder = sys.argv[1] if len(sys.argv) > 1 else "chats"
    remember(folder)
    asyncio.run(look(folder))
