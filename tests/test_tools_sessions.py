"""Tool loops in sessions: what memory holds is what the model's template writes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripted import scripted_engine
from tool_styles import NATIVE, SPECIAL, styled_tokenizer

from longmem import Session, SystemChangedError
from longmem.stores import InMemoryStore
from longmem.tools import ToolCall, ToolCallSplitter, parse_tool_calls

TOOLS = [
    {
        "name": "get_weather",
        "description": "Weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string"}},
            "required": ["place"],
        },
    }
]
CALL = ToolCall("abcDEF123", "get_weather", '{"place": "Zürich <b>"}')
STYLES = [*SPECIAL, "nano"]


def ids_of(session: Session) -> list[int]:
    """All ids a session holds."""
    return [i for turn in session._conversation.ledger.history.turns() for i in turn.ids]


def weather_loop(engine: Any, session: Session, **options: Any) -> tuple[ToolCall, str]:
    """Ask, take the call, give the result; the call that was read, and the last reply's text."""
    engine.say(engine.chat.assistant_text("", [CALL]), engine.chat.reply_lead + "It is sunny.")
    text = session.ask("Weather in Zürich?", **options).text
    content, (call,) = parse_tool_calls(text, engine.chat.tool_format)
    assert content == ""
    extra = {"tool_call_id": call.id, "name": call.name}
    result = {"role": "tool", "content": '{"sky": "clear"}', "extra": extra}
    return call, session.ask([result], **options).text


@pytest.mark.parametrize("style", STYLES)
def test_a_tool_loop_runs_in_every_style(style: str) -> None:
    engine = scripted_engine([], style=style)
    with engine.session("a", tools=TOOLS) as session:
        call, answer = weather_loop(engine, session)
        assert (call.name, json.loads(call.arguments)) == ("get_weather", {"place": "Zürich <b>"})
        assert answer == "It is sunny."
        roles = [turn.role for turn in session.turns()]
        assert roles == ["system", "user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("style", NATIVE)
def test_memory_holds_the_ids_that_the_template_writes_for_the_whole_loop(style: str) -> None:
    engine, tok = scripted_engine([], style=style), styled_tokenizer(style)
    with engine.session("a", tools=TOOLS) as session:
        call, answer = weather_loop(engine, session)
        held = ids_of(session)
    function = {"name": call.name, "arguments": json.loads(call.arguments)}
    asked: dict[str, Any] = {"role": "user", "content": "Weather in Zürich?"}
    called = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": call.id, "function": function}],
    }
    result = {"role": "tool", "content": '{"sky": "clear"}', "tool_call_id": call.id}
    talk = [asked, called, result | {"name": call.name}]
    options = {
        "tools": [{"type": "function", "function": TOOLS[0]}],
        "tools_in_user_message": False,
    }
    talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "next"}]
    if style == "mistral-v0.3-tools":  # it moves the tools behind the last user turn
        talk.pop()
    encoded = tok.apply_chat_template(talk, **options)["input_ids"]
    assert held == encoded[: len(held)] and len(held) >= len(encoded) - 12


@pytest.mark.parametrize("style", ["mistral-args", "llama3.1-tools", "nano"])
def test_streams_split_calls_off_whatever_the_pieces(style: str) -> None:
    engine = scripted_engine([], style=style)
    engine.say(
        "One moment. " * (style != "llama3.1-tools") + engine.chat.assistant_text("", [CALL])
    )
    splitter = ToolCallSplitter(engine.chat.tool_format)
    with engine.session("a", tools=TOOLS) as session, session.stream("Weather?") as stream:
        shown = "".join(splitter.push(piece) for piece in stream)
        rest, calls = splitter.finish()
        assert (shown + rest, calls[0].name) == parsed(stream.reply.text, engine.chat.tool_format)


def parsed(text: str, format: str) -> tuple[str, str]:
    content, calls = parse_tool_calls(text, format)
    return content, calls[0].name


@pytest.mark.parametrize("style", ["qwen3-tools", "mistral-v0.3-tools", "zephyr", "nano"])
def test_a_session_with_tools_resumes_and_rebuilds_to_the_same_ids(style: str) -> None:
    engine, store = scripted_engine([], style=style), InMemoryStore()
    with engine.session("a", store=store, tools=TOOLS) as session:
        weather_loop(engine, session)
        held = ids_of(session)
    with engine.session("a", store=store) as session:
        assert ids_of(session) == held
        assert [tool["name"] for tool in named(session.tools)] == ["get_weather"]
    with pytest.raises(SystemChangedError):
        engine.session("a", store=store, tools=[{**TOOLS[0], "name": "other"}])
    turns: list[int] = []
    previous = None
    with engine.session("a", store=store) as session:
        for turn in session.turns():
            extra = {key: value for key, value in turn.extra.items() if key != "reasoning"}
            turns += engine.chat.turn_ids(turn.role, turn.text, previous=previous, extra=extra)
            previous = turn.role
    assert turns == held


def named(tools: Any) -> list[Any]:
    return [tool.get("function", tool) for tool in tools]
