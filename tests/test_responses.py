"""/v1/responses, driven by the official client over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("responses")) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return server.openai()


def create(server: LiveServer, reply: str, input: Any, **options: Any) -> Any:
    """A response whose text is `reply`."""
    server.engine.say(reply)
    return server.openai().responses.create(model="nano", input=input, **options)


def test_a_response_has_every_field_the_client_reads(server: LiveServer) -> None:
    done = create(server, "Hello!", "Hi", instructions="Be brief.", metadata={"a": "b"})
    assert done.id.startswith("resp_") and done.object == "response"
    assert (done.status, done.error, done.incomplete_details) == ("completed", None, None)
    assert done.output_text == "Hello!"
    assert (done.instructions, done.metadata, done.model) == ("Be brief.", {"a": "b"}, "nano")
    message = done.output[0]
    assert message.id.startswith("msg_") and message.status == "completed"
    assert done.tools == [] and done.tool_choice == "auto" and done.parallel_tool_calls is True
    assert done.created_at <= done.completed_at
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens
    assert done.usage.input_tokens_details.cached_tokens < done.usage.input_tokens
    type(done).model_validate(done.model_dump())


def test_the_newest_response_is_continued_in_its_session(server: LiveServer) -> None:
    first = create(server, "one", "a")
    second = create(server, "two", "b", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    assert server.turns(first.id) == [
        ("user", "a"),
        ("assistant", "one"),
        ("user", "b"),
        ("assistant", "two"),
    ]
    assert second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens


def test_an_older_response_is_continued_in_a_fork(server: LiveServer) -> None:
    first = create(server, "one", "a")
    create(server, "two", "b", previous_response_id=first.id)
    other = create(server, "three", "c", previous_response_id=first.id)
    assert len(server.turns(first.id)) == 4
    assert server.turns(other.id) == [
        ("user", "a"),
        ("assistant", "one"),
        ("user", "c"),
        ("assistant", "three"),
    ]
    last = create(server, "four", "d", previous_response_id=other.id)
    assert len(server.turns(other.id)) == 6 and last.output_text == "four"


def test_a_response_is_retrieved_listed_and_deleted(
    server: LiveServer, client: openai.OpenAI
) -> None:
    done = create(
        server, "one", [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    )
    assert client.responses.retrieve(done.id).to_dict() == done.to_dict()
    items = client.responses.input_items.list(done.id, order="asc").data
    assert [item.content[0].text for item in items] == ["a", "b"]
    assert client.responses.delete(done.id) is None
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(done.id)
    with pytest.raises(openai.NotFoundError) as refused:
        create(server, "two", "b", previous_response_id=done.id)
    assert refused.value.code == "previous_response_not_found"


def test_a_response_that_is_not_stored_leaves_nothing(
    server: LiveServer, client: openai.OpenAI
) -> None:
    before = len(server.dialogue.sessions(None))
    first = create(server, "one", "a", store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    assert len(server.dialogue.sessions(None)) == before
    kept = create(server, "one", "a")
    create(server, "two", "b", previous_response_id=kept.id)
    for previous in (kept.id, client.responses.retrieve(kept.id).id):
        aside = create(server, "aside", "c", previous_response_id=previous, store=False)
        assert aside.output_text == "aside" and aside.store is False
    assert len(server.turns(kept.id)) == 4
    assert len(server.dialogue.sessions(None)) == before + 1


def test_a_reply_cut_at_its_limit_is_incomplete(server: LiveServer) -> None:
    done = create(server, "one two three four five six", "a", max_output_tokens=3)
    assert done.status == "incomplete"
    assert done.incomplete_details.reason == "max_output_tokens"
    assert done.output[0].status == "incomplete"
    assert (done.usage.output_tokens, done.completed_at) == (3, None)


def test_instructions_stay_until_they_change_and_then_the_history_is_read_again(
    server: LiveServer,
) -> None:
    first = create(server, "one", "a", instructions="Be brief.")
    kept = create(server, "two", "b", previous_response_id=first.id)
    assert kept.instructions == "Be brief."
    same = create(server, "3", "c", previous_response_id=kept.id, instructions="Be brief.")
    assert len(server.turns(first.id)) == 7
    assert same.usage.input_tokens_details.cached_tokens > 0
    new = create(server, "4", "d", previous_response_id=kept.id, instructions="Be long.")
    assert new.usage.input_tokens_details.cached_tokens == 0
    assert server.turns(new.id) == [
        ("system", "Be long."),
        ("user", "a"),
        ("assistant", "one"),
        ("user", "b"),
        ("assistant", "two"),
        ("user", "d"),
        ("assistant", "4"),
    ]
    after = create(server, "5", "e", previous_response_id=new.id)
    assert after.instructions == "Be long." and len(server.turns(new.id)) == 9


def test_a_system_message_of_the_input_survives_new_instructions(server: LiveServer) -> None:
    items = [{"role": "developer", "content": "The user is Ann."}, {"role": "user", "content": "a"}]
    first = create(server, "one", items, instructions="Be brief.")
    second = create(server, "two", "b", previous_response_id=first.id, instructions="Be brief.")
    third = create(server, "3", "c", previous_response_id=second.id, instructions="Be long.")
    assert server.turns(first.id)[0] == ("system", "Be brief.\n\nThe user is Ann.")
    assert server.turns(third.id)[0] == ("system", "Be long.\n\nThe user is Ann.")
    assert len(server.turns(first.id)) == 5 and len(server.turns(third.id)) == 7


def test_what_cannot_be_done_is_refused_in_the_envelope(
    server: LiveServer, client: openai.OpenAI
) -> None:
    stored = create(server, "one", "a")
    wrong: list[tuple[dict[str, Any], int, str]] = [
        ({"previous_response_id": "x", "conversation": "y"}, 400, "mutually_exclusive_parameters"),
        ({"previous_response_id": "resp_none"}, 404, "previous_response_not_found"),
        ({"previous_response_id": "../etc/passwd"}, 404, "previous_response_not_found"),
        ({"conversation": "conv_none"}, 404, "conversation_not_found"),
        ({"conversation": {"id": "a/b"}}, 404, "conversation_not_found"),
        ({"model": "other"}, 404, "model_not_found"),
        ({"background": True}, 400, "unsupported_parameter"),
        ({"tools": [{"type": "web_search"}]}, 400, "unsupported_parameter"),
        ({"tool_choice": "required"}, 400, "invalid_value"),
        ({"max_output_tokens": 0}, 400, "invalid_value"),
        ({"max_output_tokens": 10**9}, 400, "max_tokens_too_large"),
        ({"temperature": -1}, 400, "invalid_value"),
        ({"input": []}, 400, "invalid_input"),
        ({"input": [5]}, 400, "invalid_value"),
        ({"input": [{"role": "king", "content": "x"}]}, 400, "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, 400, "unsupported_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            400,
            "unsupported_parameter",
        ),
        ({"metadata": {"a": "b" * 600}}, 400, "invalid_value"),
    ]
    for change, status, code in wrong:
        with pytest.raises(openai.APIStatusError) as refused:
            client.responses.create(**{"model": "nano", "input": "a", **change})
        assert (refused.value.status_code, refused.value.code) == (status, code), change
    with pytest.raises(openai.BadRequestError) as refused_cancel:
        client.responses.cancel(stored.id)
    assert refused_cancel.value.code == "response_not_cancellable"
    for call in (client.responses.cancel, client.responses.delete, client.responses.retrieve):
        with pytest.raises(openai.NotFoundError):
            call("resp_none")


def test_deleting_the_last_response_of_a_session_deletes_the_session(
    server: LiveServer, client: openai.OpenAI
) -> None:
    first = create(server, "one", "a")
    second = create(server, "two", "b", previous_response_id=first.id)
    client.responses.delete(first.id)
    assert create(server, "3", "c", previous_response_id=second.id).output_text == "3"
    client.responses.delete(second.id)
    third = server.dialogue.store.records.list("longmem.responses.sessions", f"/{first.id}/")
    client.responses.delete(third[0][1])
    assert first.id not in [info.id for info in server.dialogue.sessions(None)]


def test_a_response_goes_with_its_exchange(server: LiveServer, client: openai.OpenAI) -> None:
    first = create(server, "one", "a")
    second = create(server, "two", "b", previous_response_id=first.id)
    third = create(server, "three", "c", previous_response_id=second.id)
    server.dialogue.rollback(None, first.id, 3)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(third.id)
    server.dialogue.forget(None, first.id, [0, 1])
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    assert client.responses.retrieve(second.id).output_text == "two"
    create(server, "four", "d", previous_response_id=second.id)
    assert [text for _, text in server.turns(first.id)] == ["b", "two", "d", "four"]


def test_a_reply_can_be_held_to_a_schema(server: LiveServer, client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "name": "n", "schema": schema, "strict": True}
    done = create(server, '{"n": 7}', "a", text={"format": form})
    assert (done.output_text, done.text.format.type) == ('{"n": 7}', "json_schema")
    plain = create(server, '{"n": 7}', "a", text={"format": {"type": "json_object"}})
    assert plain.output_text == '{"n": 7}'
    with pytest.raises(openai.BadRequestError):
        create(server, "x", "a", text={"format": {**form, "schema": {"type": "nonsense"}}})


def test_system_messages_between_turns_are_read_in_their_place(server: LiveServer) -> None:
    first = create(server, "one", "a")
    items = [{"role": "user", "content": "b"}, {"role": "developer", "content": "Be long."}]
    create(server, "two", [*items, items[0]], previous_response_id=first.id)
    assert [role for role, _ in server.turns(first.id)][2:] == [
        "user",
        "system",
        "user",
        "assistant",
    ]
    later = create(server, "three", items[::-1], previous_response_id=first.id)
    assert [text for _, text in server.turns(later.id)] == ["a", "one", "Be long.", "b", "three"]


def test_responses_go_on_after_a_restart(tmp_path: Path) -> None:
    with LiveServer(tmp_path) as running:
        first = create(running, "one", "a", instructions="Be brief.")
        made = running.openai().conversations.create(items=[{"role": "user", "content": "c"}])
    with LiveServer(tmp_path) as running:
        client = running.openai()
        assert client.responses.retrieve(first.id) == first
        second = create(running, "two", "b", previous_response_id=first.id)
        assert second.usage.input_tokens_details.cached_tokens > 0
        assert len(running.turns(first.id)) == 5
        create(running, "three", "d", conversation=made.id)
        assert [text for _, text in running.turns(made.id)] == ["c", "d", "three"]


def test_an_erased_session_leaves_no_trace_of_its_responses(tmp_path: Path) -> None:
    canaries = ["canary-input", "canary-rules", "canary-notes", "canary-reply", "canary-waits"]
    said, rules, notes, reply, waits = canaries
    with LiveServer(tmp_path) as running:
        client = running.openai()
        made = client.conversations.create(items=[{"role": "user", "content": "x"}])
        create(
            running,
            reply,
            said,
            conversation=made.id,
            instructions=rules,
            metadata={"notes": notes},
            extra_headers={"Idempotency-Key": "key"},
        )
        client.conversations.items.create(made.id, items=[{"role": "user", "content": waits}])
        assert all(holds(tmp_path, canary) for canary in (said, rules, notes, waits))
        httpx.post(f"{running.url}/v1/longmem/sessions/{made.id}/erase", timeout=60)
        assert not any(holds(tmp_path, canary) for canary in canaries)


def holds(folder: Path, text: str) -> bool:
    """Whether any file under a folder holds a text."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return any(text.encode() in path.read_bytes() for path in files)
