"""An agent of the OpenAI Agents SDK whose conversation lives in longmem's memory, on the CPU.

Usage: python examples/openai_agents_chat.py [store folder]

The SDK sends the whole conversation with each run; the memory reads what is new. Run it again: it
goes on where it stopped. Needs ``pip install 'longmem[openai-agents]'``.
"""

import asyncio
import sys

from agents import Agent, Runner, set_tracing_disabled

from longmem import Engine
from longmem.adapters.openai_agents import LongMemModel, LongMemSession
from longmem.dialogue import Dialogue
from longmem.stores import SQLiteStore


async def ask(agent: Agent, session: LongMemSession, text: str) -> None:
    """One run, and what it cost."""
    result = await Runner.run(agent, text, session=session)
    usage = result.context_wrapper.usage
    cached = usage.input_tokens_details.cached_tokens
    print(f"> {text}\n{result.final_output}")
    print(f"  ({usage.input_tokens - cached} new tokens read, {cached} stood in memory)")


async def main(folder: str) -> None:
    """Two days of one conversation."""
    set_tracing_disabled(True)  # traces would go to OpenAI
    engine = Engine.nano()
    with SQLiteStore(folder) as store, Dialogue(engine, store) as dialogue:
        agent = Agent("helper", instructions="You are helpful.", model=LongMemModel(dialogue))
        session = LongMemSession("alice", dialogue)
        await ask(agent, session, "My locker code is 4417.")
        await ask(agent, session, "Our bank pin is 40172.")

    print("-- the next day --")
    with SQLiteStore(folder) as store, Dialogue(engine, store) as dialogue:
        agent = Agent("helper", instructions="You are helpful.", model=LongMemModel(dialogue))
        session = LongMemSession("alice", dialogue)
        await ask(agent, session, "What is my locker code?")
        popped = await session.pop_item()
        print(f"popped: {popped and popped['content'][0]['text']}")
        await session.pop_item()
        print(f"{len(await session.get_items())} items are left")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "chats"))
