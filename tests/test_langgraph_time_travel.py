"""Going back to an older checkpoint leaves a memory that holds the chosen branch, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from scripted import scripted_engine

from longmem import Engine
from longmem.adapters.langchain import ChatLongMem
from longmem.adapters.langgraph import LongMemSaver
from longmem.store import Store
from longmem.stores import InMemoryStore

Config = dict[str, Any]
T: Config = {"configurable": {"thread_id": "t"}}


@pytest.fixture
def store() -> Iterator[Store]:
    with InMemoryStore() as store:
        yield store


@cache
def engine() -> Engine:
    """It says "ok" to everything; each test has a store of its own."""
    return scripted_engine(lambda _: "ok")


def model(store: Store, **fields: Any) -> ChatLongMem:
    """A model that says "ok"."""
    return ChatLongMem(engine=engine(), store=store, **fields)


def graph(chat: ChatLongMem, store: Store) -> CompiledStateGraph:
    """One node that answers, checkpoints beside the sessions."""

    def answer(state: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [chat.invoke(state["messages"])]}

    builder = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer")
    return builder.compile(checkpointer=LongMemSaver(store, dialogue=chat.dialogue))


def say(app: CompiledStateGraph, *texts: str, config: Config = T) -> list[BaseMessage]:
    """One invocation each; the messages after the last."""
    state: dict[str, Any] = {"messages": []}
    for text in texts:
        state = app.invoke({"messages": [HumanMessage(text)]}, config)
    return list(state["messages"])


def after(app: CompiledStateGraph, *texts: str, config: Config = T) -> Config:
    """The config of the checkpoint whose messages are these."""
    for state in app.get_state_history(config):
        if [m.text for m in state.values.get("messages", ())] == list(texts) and not state.next:
            return dict(state.config)
    raise AssertionError(f"no checkpoint after {texts}")


def turns(chat: ChatLongMem, session: str) -> list[str]:
    """The texts of a session."""
    assert chat.dialogue is not None
    return [turn.text for turn in chat.dialogue.turns(None, session)]


def sessions(chat: ChatLongMem) -> set[str]:
    """The ids of all sessions."""
    assert chat.dialogue is not None
    return {info.id for info in chat.dialogue.sessions(None)}


def test_each_turn_of_a_thread_reads_the_new_message_alone(store: Store) -> None:
    chat = model(store)
    messages = say(graph(chat, store), "a", "b", "c")
    read = [m.usage_metadata for m in messages if m.type == "ai"]
    new = {usage["input_tokens"] - usage["input_token_details"]["cache_read"] for usage in read[1:]}
    assert len(new) == 1, read
    assert turns(chat, "t") == ["a", "ok", "b", "ok", "c", "ok"]


def test_a_branch_from_an_older_checkpoint_is_a_fork_that_holds_just_that(store: Store) -> None:
    chat = model(store)
    app = graph(chat, store)
    say(app, "a", "b", "c")
    reply = say(app, "FORK", config=after(app, "a", "ok"))[-1]
    fork = reply.response_metadata["session"]
    assert isinstance(app.checkpointer, LongMemSaver)
    assert app.checkpointer.session_of(T) == (fork, 3)
    assert app.checkpointer.session_of(after(app, "a", "ok")) == ("t", 1)
    assert app.checkpointer.session_of({"configurable": {"thread_id": "other"}}) is None
    assert turns(chat, fork) == ["a", "ok", "FORK", "ok"]
    assert turns(chat, "t") == ["a", "ok", "b", "ok", "c", "ok"]
    assert chat.dialogue is not None
    kept = sum(turn.tokens for turn in chat.dialogue.turns(None, fork, 0, 2))
    assert reply.usage_metadata["input_token_details"]["cache_read"] == kept


def test_a_thread_goes_on_with_the_branch_that_was_used_last(store: Store) -> None:
    chat = model(store)
    app = graph(chat, store)
    say(app, "a", "b")
    fork = say(app, "FORK", config=after(app, "a", "ok"))[-1].response_metadata["session"]
    assert say(app, "more")[-1].response_metadata["session"] == fork
    assert turns(chat, fork) == ["a", "ok", "FORK", "ok", "more", "ok"]
    assert len(sessions(chat)) == 2


def test_the_first_branch_can_be_gone_on_from_after_another(store: Store) -> None:
    chat = model(store)
    app = graph(chat, store)
    say(app, "a", "b")
    main = after(app, "a", "ok", "b", "ok")
    say(app, "FORK", config=after(app, "a", "ok"))
    assert say(app, "c", config=main)[-1].response_metadata["session"] == "t"
    assert turns(chat, "t") == ["a", "ok", "b", "ok", "c", "ok"]


def test_a_branch_from_before_the_first_message_starts_empty(store: Store) -> None:
    chat = model(store)
    app = graph(chat, store)
    say(app, "a")
    start = next(s.config for s in app.get_state_history(T) if not s.values.get("messages"))
    reply = say(app, "FORK", config=start)[-1]
    assert turns(chat, reply.response_metadata["session"]) == ["FORK", "ok"]
    assert turns(chat, "t") == ["a", "ok"]


def test_rollback_keeps_one_session_per_thread(store: Store) -> None:
    chat = model(store, diverge="rollback")
    app = graph(chat, store)
    say(app, "a", "b", "c")
    say(app, "FORK", config=after(app, "a", "ok"))
    assert turns(chat, "t") == ["a", "ok", "FORK", "ok"]
    assert sessions(chat) == {"t"}


def test_an_edited_message_diverges_where_it_was_edited(store: Store) -> None:
    chat = model(store)
    app = graph(chat, store)
    messages = say(app, "a", "b")
    edited = HumanMessage("B", id=messages[2].id)
    app.update_state(T, {"messages": [edited]})
    reply = say(app, "c")[-1]
    assert turns(chat, reply.response_metadata["session"]) == ["a", "ok", "B", "ok", "c", "ok"]
    assert turns(chat, "t") == ["a", "ok", "b", "ok"]


def test_replaying_a_checkpoint_asks_for_another_answer_in_a_fork(store: Store) -> None:
    engine = scripted_engine(["ok", "first", "second"])
    chat = ChatLongMem(engine=engine, store=store)
    app = graph(chat, store)
    say(app, "a", "b")
    before = next(s for s in app.get_state_history(T) if s.next == ("answer",))
    reply = app.invoke(None, before.config)["messages"][-1]
    assert reply.text == "second"
    assert turns(chat, reply.response_metadata["session"]) == ["a", "ok", "b", "second"]
    assert turns(chat, "t") == ["a", "ok", "b", "first"]


def extend(state: list[Any] | None, writes: Sequence[list[Any]]) -> list[Any]:
    return [*(state or ()), *(message for write in writes for message in write)]


class Updates(TypedDict):
    """A state of which only updates are stored."""

    messages: Annotated[list[Any], DeltaChannel(extend)]


def test_a_state_of_updates_tells_where_its_conversation_stands(store: Store) -> None:
    chat = model(store)
    builder = StateGraph(Updates).add_edge(START, "answer")
    builder.add_node("answer", lambda state: {"messages": [chat.invoke(state["messages"])]})
    saver = LongMemSaver(store, dialogue=chat.dialogue)
    app = builder.compile(checkpointer=saver)
    say(app, "a", "b")
    assert saver.session_of(T) == ("t", 3)
    fork = say(app, "FORK", config=after(app, "a", "ok"))[-1].response_metadata["session"]
    assert saver.session_of(T) == (fork, 3)
    saver.prune(["t"])
    assert turns(chat, fork) == ["a", "ok", "FORK", "ok"]
    assert saver.session_of(T) == (fork, 3)


def test_an_async_graph_branches_the_same_way(store: Store) -> None:
    chat = model(store)

    async def answer(state: MessagesState) -> dict[str, list[BaseMessage]]:
        return {"messages": [await chat.ainvoke(state["messages"])]}

    builder = StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer")
    app = builder.compile(checkpointer=LongMemSaver(store, dialogue=chat.dialogue))

    async def talk() -> str:
        for text in ("a", "b"):
            await app.ainvoke({"messages": [HumanMessage(text)]}, T)
        states = [state async for state in app.aget_state_history(T)]
        old = next(s for s in states if len(s.values.get("messages", ())) == 2 and not s.next)
        state = await app.ainvoke({"messages": [HumanMessage("FORK")]}, old.config)
        return str(state["messages"][-1].response_metadata["session"])

    fork = asyncio.run(talk())
    assert turns(chat, fork) == ["a", "ok", "FORK", "ok"]
    assert turns(chat, "t") == ["a", "ok", "b", "ok"]
