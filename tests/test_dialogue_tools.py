"""Dialogues with tools: calls are parsed, streamed, kept, recognised; replies fit a schema."""

from __future__ import annotations

import json

import dialogues
import pytest
from dialogues import user
from scripted import Scripted, scripted_engine

from longmem import InputError, SystemChangedError
from longmem.dialogue import (
    Dialogue,
    Message,
    Outcome,
    Request,
    TextDelta,
    ToolCall,
    ToolCallsReady,
    turn_message,
)

TOOLS = [
    {
        "name": "weather",
        "description": "The weather at a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Bonn", "Ulm"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    }
]
OTHER = [{"name": "time", "description": "The time.", "parameters": {"type": "object"}}]
STYLES = ("nano", "qwen3-tools", "hermes-tools", "llama3.1-tools", "mistral-v0.3-tools")


@pytest.fixture(scope="module", params=STYLES)
def engine(request: pytest.FixtureRequest) -> Scripted:
    return scripted_engine([], style=request.param)


dialogue = dialogues.in_memory


def call_text(engine: Scripted, content: str, *places: str) -> str:
    """What the model writes to ask for the weather."""
    calls = [
        ToolCall(f"aaaaaaaa{i}", "weather", json.dumps({"place": place}))
        for i, place in enumerate(places)
    ]
    return engine.chat.assistant_text(content, calls)


def send(dialogue: Dialogue, *messages: Message, **options: object) -> Outcome:
    options = {"session": "s", "tools": TOOLS, **options}
    return dialogue.reply(Request(messages, **options))  # type: ignore[arg-type]


def test_a_tool_loop_reads_only_the_results(dialogue: Dialogue, engine: Scripted) -> None:
    engine.say(call_text(engine, "", "Bonn"), "It rains.")
    asked = send(dialogue, user("Weather in Bonn?"))
    assert asked.finish_reason == "tool_calls"
    (call,) = asked.message.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("weather", {"place": "Bonn"})
    assert asked.message.text == ""
    result = Message("tool", '{"sky": "rain"}', tool_call_id=call.id, name="weather")
    told = send(dialogue, user("Weather in Bonn?"), asked.message, result)
    assert (told.message.text, told.finish_reason, told.forked_from) == ("It rains.", "stop", None)
    turns = dialogue.turns(None, "s")
    assert [turn.role for turn in turns][1:] == ["user", "assistant", "tool", "assistant"]
    assert told.from_memory == sum(turn.tokens for turn in turns[:3])
    assert [turn_message(turn) for turn in turns[1:]] == [
        user("Weather in Bonn?"),
        asked.message,
        result,
        told.message,
    ]


def test_calls_that_come_back_in_another_layout_are_the_same(
    dialogue: Dialogue, engine: Scripted
) -> None:
    engine.say(call_text(engine, "", "Bonn"), "It rains.", "Bye.")
    asked = send(dialogue, user("Weather?"))
    (call,) = asked.message.tool_calls
    same = ToolCall(call.id, call.name, ' {"place":"Bonn"}')
    result = Message("tool", "rain", tool_call_id=call.id, name="weather")
    back = Message("assistant", "", tool_calls=(same,))
    assert send(dialogue, user("Weather?"), back, result).forked_from is None
    other = Message("assistant", "", tool_calls=(ToolCall(call.id, "weather", '{"place": "Ulm"}'),))
    assert send(dialogue, user("Weather?"), other, result).forked_from == "s"


def test_history_with_calls_that_others_made_is_read_as_the_model_writes_it(
    dialogue: Dialogue, engine: Scripted
) -> None:
    call = ToolCall("abcdefgh1", "weather", '{"place": "Bonn"}')
    history = [
        user("Weather?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "rain", tool_call_id=call.id, name="weather"),
        Message("assistant", "It rains."),
        user("Thanks!"),
    ]
    engine.say("Welcome.", "Bye.")
    assert send(dialogue, *history).message.text == "Welcome."
    turns = dialogue.turns(None, "s")
    assert turns[2].text == engine.chat.assistant_text("", [call])
    assert [turn_message(turn).tool_calls for turn in turns[1:4]] == [(), (call,), ()]
    more = send(dialogue, *history, Message("assistant", "Welcome."), user("Bye?"))
    assert (more.forked_from, more.turn) == (None, len(turns) + 1)


def test_the_text_before_a_call_is_streamed_and_the_markup_is_not(
    dialogue: Dialogue, engine: Scripted
) -> None:
    llama = engine.chat.tool_format == "llama3"  # writes nothing before a call
    content, places = ("", ["Bonn"]) if llama else ("Let me look.", ["Bonn", "Ulm"])
    engine.say(content + call_text(engine, "", *places))
    request = Request([user("Weather?")], session="s", tools=TOOLS)
    with dialogue.stream(request) as exchange:
        events = list(exchange)
    texts = [event.text for event in events if isinstance(event, TextDelta)]
    message = exchange.outcome.message
    assert "".join(texts) == message.text == content
    assert all(texts)
    assert events[-1] == ToolCallsReady(message.tool_calls)
    assert len(message.tool_calls) == len(places)


def test_without_tools_markup_is_text(dialogue: Dialogue, engine: Scripted) -> None:
    text = call_text(engine, "", "Bonn")
    engine.say(text, text)
    assert send(dialogue, user("Write a call."), tools=()).finish_reason == "stop"
    assert send(dialogue, user("a"), session="t", tool_choice="none").message.tool_calls == ()


def test_a_stored_reply_has_its_calls(dialogue: Dialogue, engine: Scripted) -> None:
    engine.say(call_text(engine, "", "Bonn"))
    first = send(dialogue, user("Weather?"), idempotency_key="k")
    again = send(dialogue, user("Weather?"), idempotency_key="k")
    assert (again.repeated, again.message) == (True, first.message)
    assert again.finish_reason == "tool_calls"
    request = Request([user("Weather?")], session="s", tools=TOOLS, retry=True)
    with dialogue.stream(request) as exchange:
        assert list(exchange) == [ToolCallsReady(first.message.tool_calls)]


def test_other_tools_than_the_pinned_are_refused_or_left_out(
    dialogue: Dialogue, engine: Scripted
) -> None:
    engine.say("One.", "Two.", "Three.")
    send(dialogue, user("a"))
    with pytest.raises(SystemChangedError, match="other tools"):
        send(dialogue, user("b"), tools=OTHER)
    send(dialogue, user("b"), tools=OTHER, on_system="keep")
    send(dialogue, user("c"), tools=())
    assert len(dialogue.turns(None, "s")) == 7


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_required_call_is_made_whatever_the_model_would_say(
    dialogue: Dialogue, engine: Scripted, choice: str
) -> None:
    engine.say("No, I will not do that, not today and not tomorrow.")
    outcome = send(dialogue, user("Weather?"), tool_choice=choice)
    (call,) = outcome.message.tool_calls
    assert call.name == "weather"
    assert json.loads(call.arguments)["place"] in ("Bonn", "Ulm")
    assert outcome.finish_reason == "tool_calls"


def test_what_cannot_be_enforced_leaves_no_session(dialogue: Dialogue) -> None:
    for options, match in (
        ({"tool_choice": "time"}, "no such tool"),
        ({"tool_choice": "required", "tools": ()}, "no tools"),
        ({"schema": {"type": 7}}, "schema"),
    ):
        with pytest.raises(InputError, match=match):
            send(dialogue, user("a"), **options)
    assert dialogue.sessions(None) == []


def test_a_reply_fits_its_schema(dialogue: Dialogue, engine: Scripted) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    engine.say('{"a": 1, "b": "x"}', "anything but JSON " * 20)
    assert json.loads(send(dialogue, user("a"), schema=schema, tools=()).message.text)["a"] == 1
    forced = send(dialogue, user("b"), schema=schema, tools=()).message.text
    assert json.loads(forced)["a"] in (1, 2)
