"""An agent with tools, a thread and a checkpointer: nothing is read twice, across crashes too."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.tools import tool
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import create_react_agent
from langgraph.types import Command, interrupt
from scripted import Script, scripted_engine

from longmem.adapters.langchain import ChatLongMem
from longmem.adapters.langgraph import LongMemSaver
from longmem.store import Store
from longmem.stores import InMemoryStore, SQLiteStore

THREAD: dict[str, Any] = {"configurable": {"thread_id": "trip"}}


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It rains in {city}."


def call(*cities: str) -> str:
    """What a model says to look these up."""
    calls = ({"name": "weather", "arguments": {"city": city}} for city in cities)
    return "\n".join(f"<tool_call>\n{json.dumps(each)}\n</tool_call>" for each in calls)


def agent(
    store: Store, replies: Script, saver: type[LongMemSaver] = LongMemSaver, **options: Any
) -> Any:
    """(model, agent) that says `replies`."""
    chat = ChatLongMem(engine=scripted_engine(replies), store=store)
    checkpointer = saver(store, dialogue=chat.dialogue)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it moves to another package under another name
        app = create_react_agent(
            chat, [weather], prompt="You plan trips.", checkpointer=checkpointer, **options
        )
    return chat, app


def ask(app: CompiledStateGraph, text: str) -> list[BaseMessage]:
    """The messages after an invocation."""
    return list(app.invoke({"messages": [HumanMessage(text)]}, THREAD)["messages"])


def roles(chat: ChatLongMem, session: str = "trip") -> str:
    """The roles of a session's turns."""
    assert chat.dialogue is not None
    return " ".join(turn.role for turn in chat.dialogue.turns(None, session))


def test_a_tool_loop_is_one_conversation_of_which_nothing_is_read_twice() -> None:
    with InMemoryStore() as store:
        chat, app = agent(store, [call("Oslo"), "Take a coat.", "Because it rains."])
        messages = ask(app, "What do I pack for Oslo?")
        assert [m.type for m in messages] == ["human", "ai", "tool", "ai"]
        assert messages[2].text == "It rains in Oslo." and messages[3].text == "Take a coat."
        messages = ask(app, "Why?")
        assert roles(chat) == "system user assistant tool assistant user assistant"
        turns = chat.dialogue.turns(None, "trip")
        assert chat.dialogue.engine.tokens_read == sum(turn.tokens for turn in turns)


def test_calls_at_once_are_answered_at_once() -> None:
    with InMemoryStore() as store:
        chat, app = agent(store, [call("Oslo", "Rome"), "Take a coat."])
        messages = ask(app, "Oslo, then Rome?")
        assert [m.type for m in messages] == ["human", "ai", "tool", "tool", "ai"]
        assert roles(chat) == "system user assistant tool tool assistant"


def test_streamed_tokens_and_updates_come_from_the_same_exchange() -> None:
    with InMemoryStore() as store:
        chat, app = agent(store, ["It is cold there."])
        pieces = [
            piece.text
            for piece, _ in app.stream(
                {"messages": [HumanMessage("Is it cold?")]}, THREAD, stream_mode="messages"
            )
        ]
        assert len(pieces) > 2 and "".join(pieces) == "It is cold there."
        assert roles(chat) == "system user assistant"


def last_message(state: Any) -> dict[str, Any]:
    """The model needs no more: the rest is in its memory."""
    return {"llm_input_messages": state["messages"][-1:]}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_agent_that_shows_the_last_message_alone_remembers_the_others(
    asynchronous: bool,
) -> None:
    with InMemoryStore() as store:
        said = [call("Oslo"), "Take a coat.", "Because it rains.", "To stay dry."]
        chat, app = agent(store, said, pre_model_hook=last_message)

        def say(text: str, config: Any = THREAD) -> Any:
            asked = {"messages": [HumanMessage(text)]}
            return (
                asyncio.run(app.ainvoke(asked, config))
                if asynchronous
                else app.invoke(asked, config)
            )

        say("What do I pack for Oslo?")
        old = app.get_state(THREAD).config
        say("Why?")
        assert roles(chat) == "system user assistant tool assistant user assistant"
        branch = say("What for?", old)["messages"][-1].response_metadata["session"]
        assert branch != "trip"
        assert roles(chat, branch) == roles(chat)
        assert [t.text for t in chat.dialogue.turns(None, branch)][-2:] == [
            "What for?",
            "To stay dry.",
        ]


class Crashing(LongMemSaver):
    """Loses power when the second reply is to be written down."""

    crashes = 0

    def put_writes(
        self, config: Any, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        said = [m for name, value in writes if name == "messages" for m in value]
        if any(m.text == "Take a coat." for m in said) and not type(self).crashes:
            type(self).crashes += 1
            raise OSError("power cut")
        super().put_writes(config, writes, task_id, task_path)


def test_a_task_that_is_run_again_gets_the_reply_its_session_holds() -> None:
    with InMemoryStore() as store:
        chat, app = agent(store, [call("Oslo"), "Take a coat.", "Bye."], Crashing)
        with pytest.raises(OSError, match="power cut"):
            app.invoke({"messages": [HumanMessage("Oslo?")]}, THREAD, durability="sync")
        assert roles(chat).endswith(" assistant")  # the session is ahead of the checkpoints
        held = chat.dialogue.turns(None, "trip")[-1].extra["id"]
        messages = app.invoke(None, THREAD)["messages"]
        assert (messages[-1].text, messages[-1].id) == ("Take a coat.", held)
        assert ask(app, "Thanks")[-1].text == "Bye."
        assert roles(chat) == "system user assistant tool assistant user assistant"
        assert {info.id for info in chat.dialogue.sessions(None)} == {"trip"}


def test_a_node_that_waited_for_a_person_does_not_ask_its_model_twice() -> None:
    with InMemoryStore() as store:
        chat = ChatLongMem(engine=scripted_engine(["Shall I?", "Done."]), store=store)

        def propose(state: MessagesState) -> dict[str, list[BaseMessage]]:
            reply = chat.invoke(state["messages"])
            answer = HumanMessage(interrupt(reply.text))
            return {"messages": [reply, answer, chat.invoke([*state["messages"], reply, answer])]}

        builder = StateGraph(MessagesState).add_node("propose", propose).add_edge(START, "propose")
        app = builder.compile(checkpointer=LongMemSaver(store, dialogue=chat.dialogue))
        waiting = app.invoke({"messages": [HumanMessage("Book it.")]}, THREAD)
        assert waiting["__interrupt__"][0].value == "Shall I?"
        messages = app.invoke(Command(resume="Yes."), THREAD)["messages"]
        said = ["Book it.", "Shall I?", "Yes.", "Done."]
        assert [message.text for message in messages] == said
        assert [turn.text for turn in chat.dialogue.turns(None, "trip")] == said


FIRST_DAY = """
import os, sys
from test_langgraph_agent import agent, ask, call
from longmem.stores import SQLiteStore

store = SQLiteStore(sys.argv[1])
chat, app = agent(store, [call("Oslo"), "Take a coat."])
print(ask(app, "What do I pack for Oslo?")[-1].text, flush=True)
os._exit(9)  # nothing is closed
"""


def test_a_new_process_goes_on_where_another_was_killed(tmp_path: Path) -> None:
    tests = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {tests!r})\n{FIRST_DAY}"
    line = [sys.executable, "-P", "-c", code, str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (9, "Take a coat."), done.stderr
    with SQLiteStore(tmp_path) as store:
        chat, app = agent(store, ["Because it rains."])
        before = sum(turn.tokens for turn in chat.dialogue.turns(None, "trip"))
        messages = ask(app, "Why?")
        assert [m.type for m in messages] == ["human", "ai", "tool", "ai", "human", "ai"]
        assert roles(chat) == "system user assistant tool assistant user assistant"
        assert messages[-1].usage_metadata["input_token_details"]["cache_read"] == before
        chat.close()
