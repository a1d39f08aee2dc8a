"""A PydanticAI agent whose conversation lives in longmem's memory, on the CPU.

Usage: python examples/pydantic_ai_agent.py [store folder]

Each run is given the whole message history; the memory reads the new prompt alone. Needs
``pip install 'longmem[pydantic-ai]'``.
"""

import sys

from pydantic_ai import Agent, AgentRunResult

from longmem import Engine
from longmem.adapters.pydantic_ai import LongMemModel
from longmem.dialogue import Dialogue
from longmem.stores import SQLiteStore


def show(text: str, result: AgentRunResult[str]) -> None:
    """What was said, and what it cost."""
    usage = result.usage
    print(f"> {text}\n{result.output}")
    new, cached = usage.input_tokens - usage.cache_read_tokens, usage.cache_read_tokens
    print(f"  ({new} new tokens read, {cached} stood in memory)")


def main(folder: str) -> None:
    """Three runs of one conversation."""
    with SQLiteStore(folder) as store, Dialogue(Engine.nano(), store) as dialogue:
        agent = Agent(LongMemModel(dialogue), instructions="You are helpful.")
        history = None
        for text in (
            "My locker code is 4417.",
            "Our bank pin is 40172.",
            "What is my locker code?",
        ):
            result = agent.run_sync(text, message_history=history)
            show(text, result)
            history = result.all_messages()
        print("-- an earlier history goes on in a fork --")
        text = "What is our bank pin?"
        show(text, agent.run_sync(text, message_history=history[:4]))
        for info in dialogue.sessions(None):
            print(f"session {info.id}: {info.n_turns} turns")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "chats")
