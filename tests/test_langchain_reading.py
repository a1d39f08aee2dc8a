"""What each way of calling sends, and that nothing of a conversation is ever read twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest
from langchain_core.messages import BaseMessage, HumanMessage
from test_langgraph_time_travel import graph

from longmem import Engine
from longmem.adapters.langchain import ChatLongMem
from longmem.stores import InMemoryStore

Say = Callable[[str], BaseMessage]
THREAD = {"configurable": {"thread_id": "alice"}}
TEXTS = [
    "My locker code is 482913.",
    "Bob's home town is Bergen.",
    "What is my locker code?",
    "My locker code is now 555123.",
    "What is Bob's home town?",
]


@cache
def nano() -> Engine:
    """A trained model."""
    return Engine.nano()


@pytest.fixture
def chat() -> Iterator[ChatLongMem]:
    with InMemoryStore() as store:
        yield ChatLongMem(engine=nano(), store=store)


def new_message(chat: ChatLongMem) -> Say:
    """The new message, and a thread's name."""
    return lambda text: chat.invoke(text, THREAD)


def whole_list(chat: ChatLongMem) -> Say:
    """All messages once more."""
    messages: list[BaseMessage] = []

    def say(text: str) -> BaseMessage:
        messages.append(HumanMessage(text))
        messages.append(chat.invoke(messages, session="alice"))
        return messages[-1]

    return say


def graph_state(chat: ChatLongMem) -> Say:
    """A graph's state, which holds all messages."""
    assert chat.dialogue is not None and chat.dialogue.store is not None
    app = graph(chat, chat.dialogue.store)
    return lambda text: app.invoke({"messages": [HumanMessage(text)]}, THREAD)["messages"][-1]


@pytest.mark.parametrize("way", [new_message, whole_list, graph_state])
def test_each_turn_reads_just_its_own_tokens(
    chat: ChatLongMem, way: Callable[[ChatLongMem], Say]
) -> None:
    assert chat.dialogue is not None
    say, read, said = way(chat), [], []
    for text in TEXTS:
        before = nano().tokens_read
        say(text)
        read.append(nano().tokens_read - before)
        said.append(sum(turn.tokens for turn in chat.dialogue.turns(None, "alice")[-2:]))
    assert read == said
    assert chat.dialogue.stats(None, "alice").turns == 2 * len(TEXTS)
