"""/v1/conversations, driven by the official client over real sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from live_server import LiveServer

from longmem.adapters.server.conversations_state import Conversation


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("conversations")) as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return server.openai()


def user(text: str) -> Any:
    return {"type": "message", "role": "user", "content": text}


def assistant(text: str) -> Any:
    return {"type": "message", "role": "assistant", "content": text}


def create(server: LiveServer, reply: str, input: Any, conversation: str, **options: Any) -> Any:
    """A response at the end of a conversation."""
    server.engine.say(reply)
    place = {"conversation": conversation} if conversation else {}
    return server.openai().responses.create(model="nano", input=input, **place, **options)


def texts(client: openai.OpenAI, conversation: str, order: Any = "asc") -> list[str]:
    """The texts of all items, page by page."""
    found = client.conversations.items.list(conversation, order=order, limit=2)
    return [item.content[0].text for item in found]


def test_a_conversation_is_made_changed_and_deleted(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"topic": "demo"})
    assert made.id.startswith("conv_") and made.object == "conversation"
    assert made.metadata == {"topic": "demo"}
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"topic": "other"})
    assert changed.metadata == {"topic": "other"}
    assert client.conversations.retrieve(made.id).metadata == {"topic": "other"}
    gone = client.conversations.delete(made.id)
    assert (gone.id, gone.object, gone.deleted) == (made.id, "conversation.deleted", True)
    for call in (client.conversations.retrieve, client.conversations.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            call(made.id)
        assert refused.value.code == "conversation_not_found"


def test_responses_append_to_a_conversation_and_are_its_items(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create()
    first = create(server, "one", "a", made.id)
    assert first.conversation.id == made.id
    second = create(server, "two", "b", made.id)
    assert second.usage.input_tokens_details.cached_tokens > 0
    assert texts(client, made.id) == ["a", "one", "b", "two"]
    assert texts(client, made.id, "desc") == ["two", "b", "one", "a"]
    listed = client.conversations.items.list(made.id, order="asc").data
    assert listed[1].id == first.output[0].id
    assert client.conversations.items.retrieve(listed[0].id, conversation_id=made.id) == listed[0]


def test_pages_say_where_they_end(server: LiveServer, client: openai.OpenAI) -> None:
    made = client.conversations.create(items=[user("a"), assistant("one"), user("b")])
    page = client.conversations.items.list(made.id, limit=2, order="asc")
    assert page.has_more is True and page.last_id == page.data[-1].id
    rest = client.conversations.items.list(made.id, after=page.last_id, order="asc")
    assert rest.has_more is False and len(rest.data) == 1
    with pytest.raises(openai.BadRequestError):
        client.conversations.items.list(made.id, after="msg_none")
    for limit in (0, 101):
        with pytest.raises(openai.BadRequestError):
            client.conversations.items.list(made.id, limit=limit)
    empty = client.conversations.items.list(client.conversations.create().id)
    assert (empty.data, empty.has_more) == ([], False)


def test_items_that_were_added_are_read_once_with_the_next_response(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create(items=[user("a"), assistant("one")])
    added = client.conversations.items.create(made.id, items=[user("b")])
    assert [item.content[0].text for item in added.data] == ["b"]
    assert server.turns(made.id) == []
    done = create(server, "two", "c", made.id)
    assert [text for _, text in server.turns(made.id)] == ["a", "one", "b", "c", "two"]
    assert texts(client, made.id) == ["a", "one", "b", "c", "two"]
    create(server, "three", "d", made.id)
    assert texts(client, made.id) == ["a", "one", "b", "c", "two", "d", "three"]
    items = client.responses.input_items.list(done.id).data
    assert [item.content[0].text for item in items] == ["c"]


def test_a_response_that_fails_leaves_the_added_items_waiting(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create(items=[user("a")])
    server.engine.say()
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model="nano", input="b", conversation=made.id)
    aside = create(server, "aside", "c", made.id, store=False)
    assert aside.output_text == "aside" and server.turns(made.id) == []
    create(server, "two", [], made.id)
    assert texts(client, made.id) == ["a", "two"]


def test_items_are_deleted_waiting_or_read(server: LiveServer, client: openai.OpenAI) -> None:
    made = client.conversations.create(items=[user("a"), user("b")])
    waiting = client.conversations.items.list(made.id, order="asc").data
    kept = client.conversations.items.delete(waiting[0].id, conversation_id=made.id)
    assert kept.id == made.id and texts(client, made.id) == ["b"]
    create(server, "one", "c", made.id)
    create(server, "two", "d", made.id)
    read = client.conversations.items.list(made.id, order="asc").data
    client.conversations.items.delete(read[1].id, conversation_id=made.id)
    assert texts(client, made.id) == ["b", "one", "d", "two"]
    assert [text for _, text in server.turns(made.id)] == ["b", "one", "d", "two"]
    with pytest.raises(openai.NotFoundError) as refused:
        client.conversations.items.delete(read[1].id, conversation_id=made.id)
    assert refused.value.code == "item_not_found"


def test_a_tool_call_and_its_result_are_items(server: LiveServer, client: openai.OpenAI) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "call_1", "output": "42"}
    made = client.conversations.create(items=[user("a"), assistant("Wait."), call])
    client.conversations.items.create(made.id, items=[result])
    kinds = [item.type for item in client.conversations.items.list(made.id, order="asc")]
    assert kinds == ["message", "message", "function_call", "function_call_output"]
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    create(server, "It is 42.", [], made.id, tools=[tool])
    roles = [role for role, _ in server.turns(made.id)]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    items = list(client.conversations.items.list(made.id, order="asc"))
    assert [item.type for item in items] == [*kinds, "message"]
    with pytest.raises(openai.BadRequestError) as refused:
        client.conversations.items.delete(items[2].id, conversation_id=made.id)
    assert refused.value.code == "item_of_larger_turn"


def test_instructions_are_no_item_and_system_items_are(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create(
        items=[{"type": "message", "role": "system", "content": "The user is Ann."}]
    )
    create(server, "one", "a", made.id, instructions="Be brief.")
    assert server.turns(made.id)[0] == ("system", "Be brief.\n\nThe user is Ann.")
    assert texts(client, made.id) == ["The user is Ann.", "a", "one"]
    again = create(server, "two", "b", made.id, instructions="Be brief.")
    assert again.instructions == "Be brief." and len(server.turns(made.id)) == 5


def test_added_items_that_the_client_sends_twice_are_added_once(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create()
    first = client.conversations.items.create(made.id, items=[user("a")])
    again = client.conversations.items.create(
        made.id, items=[user("a")], extra_headers={"x-stainless-retry-count": "1"}
    )
    assert again.data[0].id == first.data[0].id and texts(client, made.id) == ["a"]
    client.conversations.items.create(made.id, items=[user("a")])
    assert texts(client, made.id) == ["a", "a"]


def test_a_deleted_conversation_takes_its_responses_along(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create(items=[user("a")])
    done = create(server, "one", "b", made.id)
    client.conversations.items.create(made.id, items=[user("c")])
    client.conversations.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(done.id)
    with pytest.raises(openai.NotFoundError):
        create(server, "two", "c", made.id)
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.list(made.id)
    kept = [
        server.store.records.list(f"longmem.conversations.{name}") for name in ("pending", "read")
    ]
    assert made.id not in str(kept)


def test_bad_items_are_refused_and_nothing_is_added(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    for items in ([], [{"type": "message"}], [user("a"), {"type": "nonsense"}], ["text"]):
        with pytest.raises(openai.BadRequestError):
            client.conversations.items.create(made.id, items=items)
    assert texts(client, made.id) == []
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.create("conv_none", items=[user("a")])


def test_other_instructions_or_tools_move_the_conversation_and_nothing_is_lost(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create(metadata={"topic": "moves"})
    first = create(server, "one", "a", made.id, instructions="Be brief.")
    client.conversations.items.create(made.id, items=[user("b")])
    create(server, "two", "c", made.id, instructions="Be long.")
    expected = ["a", "one", "b", "c", "two"]
    assert texts(client, made.id) == expected
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}
    third = create(server, "three", "d", made.id, tools=[tool])
    assert third.instructions == "Be long."
    create(server, "four", "e", made.id)
    assert texts(client, made.id) == [*expected, "d", "three", "e", "four"]
    assert client.conversations.retrieve(made.id) == made
    sessions = [info.id for info in server.dialogue.sessions(None) if info.id.startswith(made.id)]
    assert len(sessions) == 3
    aside = create(server, "aside", "x", "", previous_response_id=first.id)
    assert [text for _, text in server.turns(aside.id)] == ["Be brief.", "a", "one", "x", "aside"]
    last = client.conversations.items.list(made.id, limit=1).data[0]
    client.conversations.items.delete(last.id, conversation_id=made.id)
    assert texts(client, made.id) == [*expected, "d", "three", "e"]
    client.conversations.delete(made.id)
    assert not [info for info in server.dialogue.sessions(None) if info.id.startswith(made.id)]


def test_what_continues_a_response_of_a_conversation_leaves_the_conversation_alone(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create()
    first = create(server, "one", "a", made.id)
    aside = create(server, "aside", "x", "", previous_response_id=first.id)
    assert (aside.conversation, texts(client, made.id)) == (None, ["a", "one"])
    create(server, "go on", "y", "", previous_response_id=aside.id)
    assert [text for _, text in server.turns(aside.id)] == ["a", "one", "x", "aside", "y", "go on"]


def test_one_response_at_a_time_is_made_in_a_conversation(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create()
    server.engine.script = lambda read: read.rpartition("user\n")[2].partition("<|im_end|>")[0]
    replies: list[str] = []

    def one(text: str) -> None:
        patient = server.openai(max_retries=20)
        done = patient.responses.create(model="nano", input=text, conversation=made.id)
        replies.append(done.output_text)

    threads = [threading.Thread(target=one, args=(f"word {i}",)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(replies) == [f"word {i}" for i in range(5)]
    said = texts(client, made.id)
    assert said[::2] == said[1::2] and sorted(said[::2]) == sorted(replies)


@pytest.mark.parametrize("verb", ["conversation", "delete", "erase"])
def test_a_conversation_that_moved_goes_with_all_of_its_sessions(
    server: LiveServer, client: openai.OpenAI, verb: str
) -> None:
    made = client.conversations.create()
    for i in range(3):
        create(server, f"reply {i}", f"text {i}", made.id, instructions=f"Rules {i}.")
    remove(server, made.id, verb)
    assert sessions_of(server, made.id) == []


@pytest.mark.parametrize("verb", ["delete", "erase"])
def test_what_a_conversation_moved_to_goes_when_its_first_session_is_gone(
    server: LiveServer, client: openai.OpenAI, verb: str
) -> None:
    made = client.conversations.create()
    for i in range(2):
        create(server, f"reply {i}", f"text {i}", made.id, instructions=f"Rules {i}.")
    server.dialogue.delete(None, made.id)
    remove(server, made.id, verb)
    assert sessions_of(server, made.id) == []


def test_a_conversation_moves_on_after_one_of_its_sessions_was_deleted(
    server: LiveServer, client: openai.OpenAI
) -> None:
    made = client.conversations.create()
    for i in range(3):
        create(server, f"reply {i}", f"text {i}", made.id, instructions=f"Rules {i}.")
    first_move = Conversation(server.dialogue, None, made.id).sessions[1]
    remove(server, first_move, "delete")
    create(server, "reply 3", "text 3", made.id, instructions="Rules 3.")
    said = [text for i in range(4) for text in (f"text {i}", f"reply {i}")]
    assert texts(client, made.id) == said
    assert len(sessions_of(server, made.id)) == 3
    client.conversations.delete(made.id)
    assert sessions_of(server, made.id) == []


def remove(server: LiveServer, id: str, verb: str) -> None:
    """Delete a conversation by its own route or as a session, or erase it."""
    sessions = f"{server.url}/v1/longmem/sessions/{id}"
    if verb == "conversation":
        server.openai().conversations.delete(id)
    elif verb == "delete":
        assert httpx.delete(sessions, timeout=60).status_code == 200
    else:
        assert httpx.post(f"{sessions}/erase", timeout=60).status_code == 200


def sessions_of(server: LiveServer, conversation: str) -> list[str]:
    """Ids of the sessions a conversation left."""
    return [info.id for info in server.dialogue.sessions(None) if info.id.startswith(conversation)]
