"""PydanticAI: a `Model` whose conversations live in longmem's memory.

    agent = Agent(LongMemModel(Dialogue(Engine.nano(), SQLiteStore("chats"))))
    first = await agent.run("Hi!")
    await agent.run("And then?", message_history=first.all_messages())  # reads the new prompt alone

Needs ``pip install 'longmem[pydantic-ai]'``.
"""

try:
    from longmem.adapters.pydantic_ai.model import LongMemModel
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "pydantic_ai":
        raise
    raise ImportError(
        "LongMemModel needs PydanticAI; pip install 'longmem[pydantic-ai]'"
    ) from error

__all__ = ["LongMemModel"]
