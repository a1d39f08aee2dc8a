"""LangChain's ChatOpenAI on /v1/responses: it names the last response and sends what is new alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from live_server import LiveServer
from pydantic import BaseModel


@tool
def weather(place: str) -> str:
    """The weather of a place."""
    return f"dry in {place}"


class Answer(BaseModel):
    """A number."""

    n: int


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("langchain")) as running:
        yield running


@pytest.fixture
def model(server: LiveServer) -> Any:
    return ChatOpenAI(
        model="nano",
        base_url=f"{server.url}/v1",
        api_key="none",
        use_responses_api=True,
        use_previous_response_id=True,
        max_retries=0,
    )


def test_a_growing_list_is_read_once(server: LiveServer, model: Any) -> None:
    server.engine.say("one", "two", "three")
    messages: list[Any] = [SystemMessage("Be brief."), HumanMessage("a")]
    read = []
    for text in ("b", "c", ""):
        reply = model.invoke(messages)
        usage = reply.usage_metadata
        read.append(usage["input_tokens"] - usage["input_token_details"]["cache_read"])
        messages += [reply, HumanMessage(text)]
    session = messages[2].response_metadata["id"]
    assert server.turns(session) == [
        ("system", "Be brief."),
        ("user", "a"),
        ("assistant", "one"),
        ("user", "b"),
        ("assistant", "two"),
        ("user", "c"),
        ("assistant", "three"),
    ]
    assert read[1] == read[2] < read[0]


def test_an_edited_message_is_answered_in_a_fork(server: LiveServer, model: Any) -> None:
    server.engine.say("one", "two", "other")
    first = model.invoke([HumanMessage("a")])
    model.invoke([HumanMessage("a"), first, HumanMessage("b")])
    other = model.invoke([HumanMessage("a"), first, HumanMessage("c")])
    assert len(server.turns(first.response_metadata["id"])) == 4
    assert [text for _, text in server.turns(other.response_metadata["id"])] == [
        "a",
        "one",
        "c",
        "other",
    ]


def test_a_stream_adds_up_and_is_continued(server: LiveServer, model: Any) -> None:
    server.engine.say("one two three", "four")
    chunks = list(model.stream([HumanMessage("a")]))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk) and whole.text == "one two three"
    assert len(chunks) > 3 and whole.usage_metadata["output_tokens"] > 0
    model.invoke([HumanMessage("a"), whole, HumanMessage("b")])
    assert len(server.turns(whole.response_metadata["id"])) == 4


def test_tools_are_called_and_answered(server: LiveServer, model: Any) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>'
    server.engine.say(call, "It is dry.")
    bound = model.bind_tools([weather])
    messages: list[Any] = [HumanMessage("Is it dry in Oslo?")]
    first = bound.invoke(messages)
    assert [(each["name"], each["args"]) for each in first.tool_calls] == [
        ("weather", {"place": "Oslo"})
    ]
    answer = weather.invoke(first.tool_calls[0])
    assert isinstance(answer, ToolMessage)
    last = bound.invoke([*messages, first, answer])
    assert last.text == "It is dry."
    roles = [role for role, _ in server.turns(first.response_metadata["id"])]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_a_schema_holds_the_reply(server: LiveServer, model: Any) -> None:
    server.engine.say('{"n": 7}')
    assert model.with_structured_output(Answer).invoke("How many?") == Answer(n=7)
