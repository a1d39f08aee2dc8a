"""OpenAI Agents SDK: a `Model` that remembers, and a `Session` over the same store.

    dialogue = Dialogue(Engine.nano(), SQLiteStore("chats"))
    agent = Agent("assistant", model=LongMemModel(dialogue))
    await Runner.run(agent, "Hi!", session=LongMemSession("alice", dialogue))

Needs ``pip install 'longmem[openai-agents]'``.
"""

try:
    from longmem.adapters.openai_agents.model import LongMemModel
    from longmem.adapters.openai_agents.session import LongMemSession
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("agents", "openai"):
        raise
    raise ImportError(
        "LongMemModel and LongMemSession need the OpenAI Agents SDK; "
        "pip install 'longmem[openai-agents]'"
    ) from error

__all__ = ["LongMemModel", "LongMemSession"]
