"""Tools over HTTP: a scripted model calls them, the official client answers."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from server_process import Server, shared

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    },
}


@pytest.fixture(scope="module")
def nano() -> Server:
    return shared()


@pytest.fixture(scope="module")
def echo() -> Server:
    return shared("echo")


def ask(server: Server, messages: list[Any], session: str | None, **options: Any) -> Any:
    headers = {"x-session-id": session} if session else {}
    return server.openai().chat.completions.create(
        model="nano", messages=messages, tools=[TOOL], extra_headers=headers, **options
    )


def test_the_loop_sends_the_whole_list_and_reads_only_its_end(echo: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": 'call weather {"place": "Bergen"}'}]
    first = ask(echo, messages, "loop")
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert first.choices[0].finish_reason == "tool_calls"
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"place": "Bergen"}
    assert call.id and message.content is None
    messages.append(message.model_dump(exclude_none=True))
    messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain"})
    second = ask(echo, messages, "loop")
    assert second.choices[0].message.content == "It said: rain"
    assert second.choices[0].finish_reason == "stop"
    details = second.usage.prompt_tokens_details
    assert second.usage.prompt_tokens - details.cached_tokens < details.cached_tokens


def test_a_stream_gives_calls_with_an_index_each(echo: Server) -> None:
    text = 'call weather {"place": "Oslo"} & {"place": "Rome"}'
    messages: list[Any] = [{"role": "user", "content": text}]
    stream = ask(echo, messages, "streamed", stream=True)
    chunks = [chunk.choices[0] for chunk in stream]
    calls = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert [json.loads(call.function.arguments)["place"] for call in calls] == ["Oslo", "Rome"]
    assert not any("tool_call" in (chunk.delta.content or "") for chunk in chunks)
    assert chunks[-1].finish_reason == "tool_calls"
    answers = [
        {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": f"dry {call.index}"}
        for call in calls
    ]
    done = ask(echo, answers, "streamed")  # only what is new
    assert done.choices[0].message.content == "It said: dry 1"


def test_no_tool_is_called_where_none_may_be(echo: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": "Go."}]
    done = ask(echo, messages, None, tool_choice="none")
    assert done.choices[0].message.tool_calls is None
    assert done.choices[0].message.content == "You said: Go."


def test_a_call_can_be_demanded(nano: Server) -> None:
    """nano knows no tools: that it calls one is the constraint's doing."""
    messages: list[Any] = [{"role": "user", "content": "My locker code is 482913."}]
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        done = ask(nano, messages, None, tool_choice=choice, max_tokens=120)
        if done.choices[0].finish_reason == "length":
            continue
        (call,) = done.choices[0].message.tool_calls
        assert done.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "weather"
        assert isinstance(json.loads(call.function.arguments)["place"], str)


def test_unusable_tools_are_refused(echo: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": "Go."}]
    other = {"type": "function", "function": {"name": "other"}}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(echo, messages, None, tool_choice=other)
    assert (refused.value.code, refused.value.param) == ("unknown_tool", "tool_choice")
    with pytest.raises(openai.BadRequestError) as refused:
        echo.openai().chat.completions.create(
            model="nano", messages=messages, tools=[{"type": "custom", "custom": {"name": "x"}}]
        )
    assert refused.value.param.startswith("tools[0]")
