"""Streamed responses: every event, in order, with every field the official client reads."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer
from pydantic import BaseModel

TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "The weather of a place.",
    "parameters": {
        "type": "object",
        "properties": {"place": {"type": "string"}},
        "required": ["place"],
        "additionalProperties": False,
    },
    "strict": True,
}


def calling(*places: str) -> str:
    """A reply that calls the tool."""
    calls = [{"name": "weather", "arguments": {"place": place}} for place in places]
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("streams")) as running:
        yield running


def stream(server: LiveServer, reply: str, **body: Any) -> list[Any]:
    """The events of a streamed response."""
    server.engine.say(reply)
    client = server.openai()
    return list(client.responses.create(**{"model": "nano", "input": "a", **body}, stream=True))


def test_the_events_of_a_text_come_in_order(server: LiveServer) -> None:
    events = stream(server, "one two three")
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert deltas > 1
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    created, added, done, last = events[0], events[2], events[-4], events[-1]
    assert created.response.status == "in_progress" and created.response.output == []
    assert {created.response.id, events[1].response.id, last.response.id} == {created.response.id}
    assert added.item.status == "in_progress" and added.output_index == 0
    texts = [event for event in events if event.type == "response.output_text.delta"]
    assert "".join(event.delta for event in texts) == done.text == "one two three"
    places = {(e.item_id, e.output_index, e.content_index) for e in [*texts, done, events[-3]]}
    assert places == {(added.item.id, 0, 0)}
    assert last.response.output[0].to_dict() == events[-2].item.to_dict()
    assert server.openai().responses.retrieve(last.response.id) == last.response


def test_a_stored_response_streams_again_from_any_event(server: LiveServer) -> None:
    last = stream(server, "one two three")[-1]
    client = server.openai()
    again = list(client.responses.retrieve(last.response.id, stream=True))
    assert again[-1].response == last.response
    assert [event.sequence_number for event in again] == list(range(len(again)))
    rest = list(client.responses.retrieve(last.response.id, stream=True, starting_after=3))
    assert [event.to_dict() for event in rest] == [event.to_dict() for event in again[4:]]


def test_the_clients_own_accumulator_takes_the_stream(server: LiveServer) -> None:
    class Answer(BaseModel):
        n: int

    server.engine.say('{"n": 7}')
    with server.openai().responses.stream(
        model="nano", input="a", text_format=Answer
    ) as accumulated:
        kinds = [event.type for event in accumulated]
        final = accumulated.get_final_response()
    assert "response.output_text.delta" in kinds
    assert final.output_parsed == Answer(n=7)


def test_tool_calls_are_items_of_their_own(server: LiveServer) -> None:
    events = stream(server, "Let me look. " + calling("Oslo", "Rome"), tools=[TOOL])
    kinds = [event.type.removeprefix("response.") for event in events]
    call = [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert kinds[-9:] == [*call, *call, "completed"]
    output = events[-1].response.output
    assert [item.type for item in output] == ["message", "function_call", "function_call"]
    assert [json.loads(item.arguments) for item in output[1:]] == [
        {"place": "Oslo"},
        {"place": "Rome"},
    ]
    assert [e.output_index for e in events if e.type == "response.output_item.done"] == [0, 1, 2]
    assert len({item.call_id for item in output[1:]} | {item.id for item in output}) == 5
    answers = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "dry"}
        for item in output[1:]
    ]
    end = stream(
        server,
        "Both are dry.",
        input=answers,
        tools=[TOOL],
        previous_response_id=events[-1].response.id,
    )[-1].response
    assert end.output_text == "Both are dry."
    assert [turn.role for turn in server.dialogue.turns(None, events[-1].response.id)] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]


def test_the_clients_tool_loop_sends_items_back_as_they_came(server: LiveServer) -> None:
    client, items = server.openai(), [{"role": "user", "content": "Is it dry in Oslo?"}]
    server.engine.say(calling("Oslo"), "Yes.")
    with client.responses.stream(model="nano", input=items, tools=[TOOL]) as accumulated:
        first = accumulated.get_final_response()
    call = first.output[0]
    assert call.type == "function_call" and call.parsed_arguments == {"place": "Oslo"}
    answer = {"type": "function_call_output", "call_id": call.call_id, "output": "dry"}
    items += [item.to_dict() for item in first.output] + [answer]
    second = client.responses.create(model="nano", input=items, tools=[TOOL])
    assert second.output_text == "Yes."
    turns = server.dialogue.turns(None, second.id)
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool", "assistant"]
    assert turns[2].text == server.dialogue.turns(None, first.id)[2].text


def test_a_cut_stream_ends_incomplete(server: LiveServer) -> None:
    events = stream(server, "one two three four five six", max_output_tokens=3)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"
    assert events[-2].item.status == "incomplete"


def test_what_fails_before_the_first_event_is_a_status(server: LiveServer) -> None:
    with pytest.raises(openai.NotFoundError):
        stream(server, "x", previous_response_id="resp_none")


def test_a_reply_that_fails_in_the_middle_ends_as_failed(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.engine.say("one two three four five six seven eight")
    scheduler, passes = server.engine.scheduler, []
    run_pass = scheduler._run_pass

    def breaking(feeds: Any) -> Any:
        passes.append(1)
        if len(passes) > 6:
            raise RuntimeError("the device is gone")
        return run_pass(feeds)

    monkeypatch.setattr(scheduler, "_run_pass", breaking)
    events = list(server.openai().responses.create(model="nano", input="a", stream=True))
    assert events[-1].type == "response.failed"
    failed = events[-1].response
    assert failed.status == "failed" and failed.error.code == "server_error"
    assert "device" not in failed.error.message
    monkeypatch.undo()
    with pytest.raises(openai.NotFoundError):
        server.openai().responses.retrieve(failed.id)
    assert failed.id not in [info.id for info in server.dialogue.sessions(None)]


def test_a_client_that_leaves_commits_nothing(server: LiveServer) -> None:
    first = stream(server, "one")[-1].response
    server.engine.say("word " * 400)
    body = {"model": "nano", "input": "b", "previous_response_id": first.id, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if "output_text.delta" in line:
                break
    deadline = time.monotonic() + 20
    while server.app.state.context.traffic.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(server.turns(first.id)) == 2
    again = stream(server, "two", input="b", previous_response_id=first.id)[-1].response
    assert again.output_text == "two" and len(server.turns(first.id)) == 4


def test_a_client_that_leaves_frees_its_conversation(server: LiveServer) -> None:
    client = server.openai(max_retries=20)
    made = client.conversations.create(items=[{"role": "user", "content": "a"}])
    server.engine.say("word " * 400)
    body = {"model": "nano", "input": "b", "conversation": made.id, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        while "output_text.delta" not in next(lines):
            pass
        busy = httpx.post(f"{server.url}/v1/responses", json={**body, "stream": False})
        assert (busy.status_code, busy.json()["error"]["code"]) == (409, "session_in_use")
    server.engine.say("two")
    done = client.responses.create(model="nano", input="c", conversation=made.id)
    assert done.output_text == "two"
    assert [text for _, text in server.turns(made.id)] == ["a", "c", "two"]


def test_requests_that_continue_one_response_at_once_each_get_their_own_turns(
    server: LiveServer,
) -> None:
    first = stream(server, "one")[-1].response
    server.engine.script = lambda read: read.rpartition("user\n")[2].partition("<|im_end|>")[0]

    async def one(client: openai.AsyncOpenAI, text: str) -> str:
        done = await client.responses.create(
            model="nano", input=text, previous_response_id=first.id
        )
        assert done.output_text == text
        return done.id

    async def all_of_them() -> list[str]:
        async with server.async_openai(max_retries=5) as client:
            return await asyncio.gather(*[one(client, f"word {i}") for i in range(6)])

    ids = asyncio.run(all_of_them())
    assert len(set(ids)) == 6
    texts = [[text for _, text in server.turns(id)] for id in ids if _is_session(server, id)]
    assert sorted(map(len, texts)) == [4] * 5
    assert len(server.turns(first.id)) == 4


def _is_session(server: LiveServer, id: str) -> bool:
    return id in [info.id for info in server.dialogue.sessions(None)]
