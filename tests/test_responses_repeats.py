"""Responses asked for twice: who sends again gets the first answer, who wants another one gets that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer
from server_process import Faults


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    running = LiveServer(tmp_path_factory.mktemp("repeats"))
    running.app.add_middleware(Faults)
    with running:
        yield running


def create(server: LiveServer, input: str, *, headers: Any = None, **options: Any) -> Any:
    client = server.openai(max_retries=2)
    return client.responses.create(
        model="nano", input=input, extra_headers=headers or {}, **options
    )


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("place", ["new", "previous", "older", "conversation"])
def test_a_request_the_client_repeats_by_itself_is_answered_once(
    server: LiveServer, fault: str, place: str
) -> None:
    where = begin(server, place)
    before = {info.id: info.n_turns for info in server.dialogue.sessions(None)}
    server.engine.say("reply", "not this one")
    done = create(server, "once", headers={"x-fault": fault}, **where)
    assert (done.output_text, server.engine.said) == ("reply", 1)
    after = {info.id: info.n_turns for info in server.dialogue.sessions(None)}
    session = (
        where.get("conversation")
        or next((id for id in after if id not in before), None)
        or str(server_session(server, where))
    )
    assert [text for _, text in server.turns(session)].count("once") == 1
    new = 0 if place in ("previous", "conversation") else 1
    assert len(after) - len(before) == new
    assert server.openai().responses.retrieve(done.id).output_text == "reply"


def test_a_stream_that_broke_at_its_end_is_repeated_from_the_store(server: LiveServer) -> None:
    where = begin(server, "previous")
    server.engine.say("reply one", "not this one")
    body = {"model": "nano", "input": "once", "stream": True, **where}
    with pytest.raises(httpx.TransportError):
        httpx.post(f"{server.url}/v1/responses", json=body, headers={"x-fault": "cut"})
    again = httpx.post(
        f"{server.url}/v1/responses", json=body, headers={"x-stainless-retry-count": "1"}
    )
    kinds = [line[7:] for line in again.text.splitlines() if line.startswith("event: ")]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 1 and "reply one" in again.text
    assert server.engine.said == 1


def test_a_wanted_second_answer_is_a_new_one(server: LiveServer) -> None:
    where = begin(server, "previous")
    server.engine.say("one", "two")
    first, second = create(server, "again", **where), create(server, "again", **where)
    assert (first.output_text, second.output_text) == ("one", "two")
    assert first.id != second.id


def test_an_equal_turn_later_in_a_conversation_is_no_repeat(server: LiveServer) -> None:
    where = begin(server, "conversation")
    server.engine.say("one", "two", "three", "four")
    create(server, "yes", **where)
    create(server, "no", **where)
    done = create(server, "yes", headers={"x-stainless-retry-count": "1"}, **where)
    assert done.output_text == "three"


def test_an_idempotency_key_brings_the_stored_response_back(server: LiveServer) -> None:
    server.engine.say("one", "two")
    headers = {"Idempotency-Key": "k1"}
    first = create(server, "a", headers=headers)
    assert create(server, "a", headers=headers).id == first.id
    with pytest.raises(openai.BadRequestError) as refused:
        create(server, "other", headers=headers)
    assert refused.value.code == "idempotency_key_reused"
    assert create(server, "a", headers={"Idempotency-Key": "k2"}).output_text == "two"


@pytest.mark.parametrize("other", ["conversation", "previous", "instructions", "tools", "limit"])
def test_an_idempotency_key_stands_for_the_whole_request(server: LiveServer, other: str) -> None:
    here = begin(server, "conversation")
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    asked: dict[str, Any] = {
        "conversation": lambda: begin(server, "conversation"),
        "previous": lambda: begin(server, "previous"),
        "instructions": lambda: {**here, "instructions": "Be brief."},
        "tools": lambda: {**here, "tools": [tool]},
        "limit": lambda: {**here, "max_output_tokens": 7},
    }[other]()
    server.engine.say("one", "two")
    headers = {"Idempotency-Key": f"whole-{other}"}
    first = create(server, "yes", headers=headers, **here)
    with pytest.raises(openai.BadRequestError) as refused:
        create(server, "yes", headers=headers, **asked)
    assert refused.value.code == "idempotency_key_reused"
    again = create(server, "yes", headers=headers, conversation={"id": here["conversation"]})
    assert again.id == first.id
    done = create(server, "yes", headers={"Idempotency-Key": f"fresh-{other}"}, **asked)
    assert done.output_text == "two"


def test_a_repeat_waits_for_the_request_it_repeats(server: LiveServer) -> None:
    release, started = threading.Event(), threading.Event()

    def script(read: str) -> str:
        started.set()
        assert release.wait(30)
        return "slow"

    server.engine.script = script
    answers: list[Any] = []
    first = threading.Thread(target=lambda: answers.append(create(server, "slow one")))
    first.start()
    assert started.wait(30)
    headers = {"x-stainless-retry-count": "1"}
    body = {"model": "nano", "input": "slow one"}
    busy = httpx.post(f"{server.url}/v1/responses", json=body, headers=headers)
    assert (busy.status_code, busy.json()["error"]["code"]) == (409, "request_in_progress")
    assert int(busy.headers["retry-after-ms"]) > 0
    release.set()
    first.join(30)
    time.sleep(0.01)
    again = httpx.post(f"{server.url}/v1/responses", json=body, headers=headers)
    assert again.json()["id"] == answers[0].id


def begin(server: LiveServer, place: str) -> dict[str, Any]:
    """What a request continues."""
    server.engine.say("first", "second")
    if place == "new":
        return {}
    if place == "conversation":
        conversation = server.openai().conversations.create()
        create(server, "begin", conversation=conversation.id)
        return {"conversation": conversation.id}
    first = create(server, "begin")
    if place == "older":
        create(server, "go on", previous_response_id=first.id)
    return {"previous_response_id": first.id}


def server_session(server: LiveServer, where: dict[str, Any]) -> str | None:
    """The session of the response that is continued."""
    return where.get("previous_response_id")
