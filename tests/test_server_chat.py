"""/v1/chat/completions, driven by the official client over real sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from server_process import Server, shared

from longmem.stores import SQLiteStore

FACT = "My locker code is 482913."
QUESTION = "What is my locker code?"


@pytest.fixture(scope="module")
def nano() -> Server:
    return shared()


@pytest.fixture(scope="module")
def echo() -> Server:
    return shared("echo")


@pytest.fixture
def client(nano: Server) -> openai.OpenAI:
    return nano.openai()


def say(client: openai.OpenAI, session: str | None, *texts: str, **options: Any) -> Any:
    """A chat completion to user messages, in a session."""
    headers = {"x-session-id": session} if session else {}
    headers |= options.pop("extra_headers", {})
    return client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": text} for text in texts],
        extra_headers=headers,
        **options,
    )


def test_a_session_remembers_and_reads_only_what_is_new(client: openai.OpenAI) -> None:
    say(client, "chat-remembers", FACT)
    done = say(client, "chat-remembers", QUESTION)
    assert "482913" in done.choices[0].message.content
    details = done.usage.prompt_tokens_details
    assert details.cached_tokens > 0
    assert done.usage.prompt_tokens - details.cached_tokens < 20
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def test_every_field_of_a_completion_is_there(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="nano",
        messages=[{"role": "user", "content": FACT}],
        extra_headers={"x-session-id": "chat-fields"},
    )
    done = raw.parse()
    choice = done.choices[0]
    assert done.id.startswith("chatcmpl-") and done.object == "chat.completion"
    assert (done.model, done.service_tier) == ("nano", "default")
    assert done.created > 1_700_000_000 and done.system_fingerprint.startswith("fp_")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.refusal) == ("assistant", None)
    assert choice.message.annotations == [] and choice.message.tool_calls is None
    assert raw.headers["x-session-id"] == "chat-fields"
    assert raw.headers["x-request-id"].startswith("req_") == done._request_id.startswith("req_")


def test_a_stream_says_the_same_in_pieces(client: openai.OpenAI) -> None:
    whole = say(client, None, FACT).choices[0].message.content
    stream = client.chat.completions.with_raw_response.create(
        model="nano",
        messages=[{"role": "user", "content": FACT}],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"x-session-id": "chat-stream"},
    )
    chunks = list(stream.parse())
    assert stream.headers["x-session-id"] == "chat-stream"
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "stop"
    ]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_clients_own_stream_helper_works(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="nano", messages=[{"role": "user", "content": FACT}]
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content and final.choices[0].finish_reason == "stop"


def test_without_a_session_nothing_is_kept(nano: Server) -> None:
    client = nano.openai()
    raw = client.chat.completions.with_raw_response.create(
        model="nano", messages=[{"role": "user", "content": FACT}]
    )
    assert "x-session-id" not in raw.headers
    done = client.chat.completions.create(
        model="nano",
        messages=[
            {"role": "user", "content": FACT},
            {"role": "assistant", "content": "OK, I will remember that."},
            {"role": "user", "content": QUESTION},
        ],
    )
    assert "482913" in done.choices[0].message.content
    assert done.usage.prompt_tokens_details.cached_tokens == 0


def test_the_whole_conversation_again_reads_only_its_end(echo: Server) -> None:
    client, messages = echo.openai(), []
    for text in ("one", "two", "three"):
        messages.append({"role": "user", "content": text})
        done = client.chat.completions.create(
            model="nano", messages=messages, extra_headers={"x-session-id": "whole"}
        )
        assert done.choices[0].message.content == f"You said: {text}"
        messages.append({"role": "assistant", "content": done.choices[0].message.content})
    fresh = done.usage.prompt_tokens - done.usage.prompt_tokens_details.cached_tokens
    assert 0 < fresh < done.usage.prompt_tokens_details.cached_tokens


def test_an_edited_message_forks_or_rolls_back(echo: Server) -> None:
    client = echo.openai()
    for text in ("a", "b"):
        say(client, "edited", text)
    edited = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "You said: a"},
        {"role": "user", "content": "B"},
    ]
    create = client.chat.completions.with_raw_response.create
    forked = create(model="nano", messages=edited, extra_headers={"x-session-id": "edited"})
    assert forked.headers["x-session-forked-from"] == "edited"
    assert forked.headers["x-session-id"].startswith("edited~")
    how = {"x-session-id": "edited", "x-session-diverge": "rollback"}
    rolled = create(model="nano", messages=edited, extra_headers=how)
    assert rolled.headers["x-session-id"] == "edited"
    assert "x-session-forked-from" not in rolled.headers
    how = {"x-session-id": "edited", "x-session-diverge": "refuse"}
    edited[-1]["content"] = "bb"
    with pytest.raises(openai.APIStatusError) as refused:
        create(model="nano", messages=edited, extra_headers=how)
    assert (refused.value.status_code, refused.value.code) == (409, "diverged")


def test_store_false_answers_from_memory_and_keeps_nothing(client: openai.OpenAI) -> None:
    say(client, "chat-unstored", FACT)
    for _ in range(2):
        done = say(client, "chat-unstored", QUESTION, store=False)
        assert "482913" in done.choices[0].message.content
        cached = done.usage.prompt_tokens_details.cached_tokens
    assert (
        cached == say(client, "chat-unstored", QUESTION).usage.prompt_tokens_details.cached_tokens
    )


def test_repeats_get_the_stored_reply_and_regenerating_does_not(client: openai.OpenAI) -> None:
    once = {"Idempotency-Key": "key-1"}
    first = say(client, "chat-repeat", FACT, extra_headers=once)
    again = say(client, "chat-repeat", FACT, extra_headers=once)
    assert (again.id, again.choices[0].message.content) == (
        first.id,
        first.choices[0].message.content,
    )
    retried = say(client, "chat-repeat", FACT, extra_headers={"x-stainless-retry-count": "1"})
    assert retried.id == first.id
    anew = say(client, "chat-repeat", FACT)
    assert anew.id != first.id
    assert anew.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_retry_of_the_client_commits_once(echo: Server, fault: str) -> None:
    client, session = echo.openai(max_retries=2), f"retried-{fault}"
    texts = ["first", "second", "third"]
    for text in texts:
        done = say(client, session, text, extra_headers={"x-fault": fault})
        assert done.choices[0].message.content == f"You said: {text}"
    counted = say(client, session, "count", store=False).usage.prompt_tokens_details.cached_tokens
    for text in texts:
        say(client, f"{session}-plain", text)
    plain = say(client, f"{session}-plain", "count", store=False)
    assert counted == plain.usage.prompt_tokens_details.cached_tokens


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_retry_of_an_edited_conversation_forks_once(echo: Server, fault: str) -> None:
    client, session = echo.openai(max_retries=2), f"edited-{fault}"
    for text in ("a", "b"):
        say(client, session, text)
    edited = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "You said: a"},
        {"role": "user", "content": "B"},
    ]
    headers = {"x-session-id": session, "x-fault": fault}
    create = client.chat.completions.with_raw_response.create
    forked = create(model="nano", messages=edited, extra_headers=headers)
    assert forked.parse().choices[0].message.content == "You said: B"
    with SQLiteStore(echo.store, read_only=True) as store:
        turns = {info.id: info.n_turns for info in store.sessions() if session in info.id}
    assert turns == {session: 4, forked.headers["x-session-id"]: 4}


def test_limits_stops_and_seeds_are_obeyed(client: openai.OpenAI) -> None:
    short = say(client, None, FACT, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    assert say(client, None, FACT, max_completion_tokens=1).usage.completion_tokens == 1
    whole = say(client, None, FACT).choices[0].message.content
    stop = whole[3:6]
    stopped = say(client, None, FACT, stop=[stop]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole.partition(stop)[0], "stop")
    wild = {"temperature": 2.0, "top_p": 0.99, "seed": -7, "max_tokens": 8}
    one, two = (say(client, None, FACT, **wild).choices[0].message.content for _ in range(2))
    assert one == two
    others = {
        say(client, None, FACT, **{**wild, "seed": n}).choices[0].message.content for n in range(4)
    }
    assert len(others) > 1
    assert say(client, None, FACT, temperature=0, top_p=0.5).choices[0].message.content == whole


def test_structured_output_fits_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"code": {"type": "integer"}, "sure": {"type": "boolean"}},
        "required": ["code", "sure"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    done = say(client, "chat-schema", QUESTION, response_format=wanted, max_tokens=60)
    if done.choices[0].finish_reason == "stop":
        found = json.loads(done.choices[0].message.content)
        assert isinstance(found["code"], int) and isinstance(found["sure"], bool)
    anything = say(client, None, QUESTION, response_format={"type": "json_object"}, max_tokens=40)
    assert anything.choices[0].message.content.lstrip().startswith("{")


def test_a_system_prompt_is_pinned_and_its_change_refused(echo: Server) -> None:
    client = echo.openai()
    system = {"role": "developer", "content": "Be brief."}
    ask = {
        "role": "user",
        "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}],
    }
    headers = {"x-session-id": "pinned"}
    create = client.chat.completions.create
    done = create(model="nano", messages=[system, ask], extra_headers=headers)
    assert done.choices[0].message.content == "You said: Hi!"
    create(model="nano", messages=[system, ask], extra_headers=headers)
    other = {"role": "system", "content": "Be verbose."}
    with pytest.raises(openai.APIStatusError) as refused:
        create(model="nano", messages=[other, ask], extra_headers=headers)
    assert refused.value.code == "system_prompt_changed"
    keep = headers | {"x-session-system": "keep"}
    create(model="nano", messages=[other, ask], extra_headers=keep)


def test_the_model_is_listed_and_found_by_name(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("nano", "model", "longmem")
    assert client.models.retrieve("nano").id == "nano"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("org/other")
    assert missing.value.code == "model_not_found"


async def talk(server: Server) -> str:
    async with server.async_openai() as client:
        stream = await client.chat.completions.create(
            model="nano", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_the_asyncio_client_streams_too(echo: Server) -> None:
    assert asyncio.run(talk(echo)) == "You said: Hello"


def engine_read(server: Server) -> int:
    """Tokens the model was fed so far."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith("longmem_engine_tokens_read_total ")]
    return int(float(line.split()[1]))


@pytest.mark.parametrize("whole", [False, True], ids=["only the new turn", "the whole list"])
def test_five_turns_feed_no_token_of_history_again(echo: Server, whole: bool) -> None:
    client, messages = echo.openai(), []
    read, new, fed = [], [], 0
    for i in range(5):
        messages.append({"role": "user", "content": f"This is message number {i}."})
        before = engine_read(echo)
        done = client.chat.completions.create(
            model="nano",
            messages=messages if whole else messages[-1:],
            extra_headers={"x-session-id": f"five-{whole}"},
        )
        fed += engine_read(echo) - before
        read.append(done.usage.prompt_tokens - done.usage.prompt_tokens_details.cached_tokens)
        new.append(say(client, None, messages[-1]["content"]).usage.prompt_tokens)
        messages.append({"role": "assistant", "content": done.choices[0].message.content})
    held = say(client, f"five-{whole}", "?", store=False).usage.prompt_tokens_details.cached_tokens
    print(f"read per turn {read}, tokens of the turn alone {new}, fed {fed}, held {held}")
    assert fed == held  # every token once
    assert read == new
