"""A LangGraph agent whose checkpoints and memory lie in one store; a trip back in time; a copy.

    pip install 'longmem[langgraph]' langgraph
    python examples/langgraph_agent.py [FOLDER]

FOLDER is where the store is kept; default: a temporary one.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from longmem import Engine
from longmem.adapters.langchain import ChatLongMem
from longmem.adapters.langgraph import LongMemSaver
from longmem.stores import SQLiteStore


@tool
def lockers() -> str:
    """All lockers of the house."""
    return "Bob's locker code is 771204."


def agent(chat: ChatLongMem, saver: LongMemSaver) -> Any:
    """A model and its tool in a loop. The model is tiny and calls no tool by itself: for the word
    "look" it has to, which works with any model, because the reply is constrained to a call."""

    def answer(state: MessagesState) -> dict[str, list[BaseMessage]]:
        last = state["messages"][-1]
        choice = "any" if last.type == "human" and "look" in last.text else "none"
        return {
            "messages": [chat.bind_tools([lockers], tool_choice=choice).invoke(state["messages"])]
        }

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer).add_node("tools", ToolNode([lockers]))
    graph.add_edge(START, "answer").add_edge("tools", "answer")
    graph.add_conditional_edges("answer", tools_condition)
    return graph.compile(checkpointer=saver)


def say(app: Any, text: str, config: Any) -> None:
    """One message, what comes of it, and in which session."""
    message = app.invoke({"messages": [("human", text)]}, config)["messages"][-1]
    usage, session = message.usage_metadata, message.response_metadata["session"]
    read = usage["input_tokens"] - usage["input_token_details"]["cache_read"]
    print(f"> {text}\n{message.text}  [{session}: {read} tokens read]")


def main() -> None:
    """A thread, a branch of it, a copy."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = sys.argv[1] if len(sys.argv) > 1 else f"{temporary}/agent"
        with (
            SQLiteStore(folder) as store,
            closing(ChatLongMem(engine=Engine.nano(), store=store)) as chat,
        ):
            saver = LongMemSaver(store, dialogue=chat.dialogue)
            app, thread = agent(chat, saver), {"configurable": {"thread_id": "alice"}}
            say(app, "My locker code is 482913.", thread)
            before = app.get_state(thread).config
            say(app, "Please look up the lockers.", thread)
            say(app, "What is Bob's locker code?", thread)
            say(app, "My locker code is now 555123.", before)  # back in time: a branch
            saver.copy_thread("alice", "bob")
            say(app, "What is my locker code?", {"configurable": {"thread_id": "bob"}})
            saver.delete_thread("alice")
            print("left:", *sorted(info.id for info in store.sessions()))


if __name__ == "__main__":
    main()
