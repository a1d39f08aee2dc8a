"""longmem's own routes, and what one owner can find out about another's sessions through all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live_server import LiveServer

KEYS = {"ann": "key-of-ann-1", "bob": "key-of-bob-1"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("own"), keys=KEYS) as running:
        yield running


def call(server: LiveServer, method: str, path: str, *, owner: str = "ann", **options: Any) -> Any:
    """A request to one of the routes."""
    url = f"{server.url}/v1{path}"
    return httpx.request(
        method, url, headers={"authorization": f"Bearer {KEYS[owner]}"}, timeout=60, **options
    )


def own(server: LiveServer, method: str, path: str, **options: Any) -> Any:
    """What one of longmem's own routes answers."""
    answer = call(server, method, f"/longmem/sessions{path}", **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def talk(server: LiveServer, session: str, *texts: str, owner: str = "ann") -> None:
    """Exchanges in which each text is answered by itself in capitals."""
    for text in texts:
        server.engine.say(text.upper())
        client = server.openai(KEYS[owner])
        client.chat.completions.create(
            model="nano",
            messages=[{"role": "user", "content": text}],
            extra_headers={"x-session-id": session},
        )


def said(server: LiveServer, session: str) -> list[str]:
    """The texts of a session, page by page."""
    found: list[str] = []
    while True:
        page = own(server, "GET", f"/{session}/turns", params={"start": len(found), "limit": 3})
        found += [turn["text"] for turn in page["data"]]
        if not page["has_more"]:
            return found


def test_sessions_are_listed_page_by_page(server: LiveServer) -> None:
    for name in ("list-1", "list-2", "list-3"):
        talk(server, name, "a")
    first = own(server, "GET", "", params={"limit": 2})
    assert first["has_more"] and [each["id"] for each in first["data"]] == ["list-3", "list-2"]
    rest = own(server, "GET", "", params={"after": first["last_id"]})
    assert "list-1" in [each["id"] for each in rest["data"]]
    one = own(server, "GET", "/list-1")
    assert (one["object"], one["turns"], one["forked_from"]) == ("session", 2, None)
    assert one["tokens"] > 0 and one["created_at"] <= one["updated_at"]


def test_a_session_forks_rolls_back_and_forgets(server: LiveServer) -> None:
    talk(server, "verbs", "a", "b", "c")
    fork = own(server, "POST", "/verbs/fork", json={"at": 3, "id": "verbs-fork"})
    assert (fork["id"], fork["forked_from"], fork["forked_at"]) == ("verbs-fork", "verbs", 3)
    assert said(server, "verbs-fork") == ["a", "A", "b", "B"]
    named = own(server, "POST", "/verbs/fork")
    assert named["turns"] == 6 and named["id"].startswith("verbs~")
    assert own(server, "POST", "/verbs/rollback", json={"to": 1})["turns"] == 2
    talk(server, "verbs", "d")
    assert said(server, "verbs") == ["a", "A", "d", "D"]
    own(server, "POST", "/verbs-fork/forget", json={"turns": [0, 1]})
    assert said(server, "verbs-fork") == ["b", "B"]
    own(server, "POST", "/verbs-fork/forget", json={"turns": 1})
    assert said(server, "verbs-fork") == ["b"]


def test_a_session_is_deleted_or_erased(server: LiveServer) -> None:
    for verb, path in (("DELETE", "/gone"), ("POST", "/gone/erase")):
        talk(server, "gone", "a")
        assert own(server, verb, path) == {
            "id": "gone",
            "object": "session.deleted",
            "deleted": True,
        }
        assert call(server, "GET", "/longmem/sessions/gone").status_code == 404


def test_stats_and_turns_tell_what_a_session_holds(server: LiveServer) -> None:
    talk(server, "figures", "a")
    stats = own(server, "GET", "/figures/stats")
    assert stats["turns"] == 2 and stats["tokens"] == own(server, "GET", "/figures")["tokens"]
    assert set(stats["tiers"]) == {"device", "host", "disk"}
    turn = own(server, "GET", "/figures/turns")["data"][1]
    assert (turn["index"], turn["role"], turn["text"], turn["finish_reason"]) == (
        1,
        "assistant",
        "A",
        "eos",
    )
    assert own(server, "GET", "/figures/turns", params={"start": 2**50})["data"] == []


def test_recall_finds_turns_and_says_where(server: LiveServer) -> None:
    talk(server, "recalls", "The locker code is 482913.", "Nothing else.")
    found = own(server, "POST", "/recalls/recall", json={"query": "locker code", "k": 3})["data"]
    texts = [each for each in found if each["source"] == "text"]
    assert texts and "482913" in texts[0]["turn"]["text"] and texts[0]["snippet"]
    only = own(server, "POST", "/recalls/recall", json={"query": "locker", "text": False})["data"]
    assert {each["source"] for each in only} <= {"memory"}


def test_absurd_values_are_refused(server: LiveServer) -> None:
    talk(server, "absurd", "a")
    for path, body in (
        ("rollback", {"to": -2}),
        ("rollback", {"to": 10**30}),
        ("rollback", {"to": 7}),
        ("rollback", {"to": 0}),
        ("rollback", {}),
        ("fork", {"at": 99}),
        ("fork", {"at": "1"}),
        ("fork", {"id": "a/b"}),
        ("fork", {"id": "absurd"}),
        ("fork", {"id": ""}),
        ("forget", {"turns": []}),
        ("forget", {"turns": [-1]}),
        ("forget", {"turns": 10**18}),
        ("forget", {"turns": 50}),
        ("recall", {"query": ""}),
        ("recall", {"query": "a", "k": 10**9}),
    ):
        answer = call(server, "POST", f"/longmem/sessions/absurd/{path}", json=body)
        assert answer.status_code == 400, (path, body, answer.text)
        assert answer.json()["error"]["code"]
    assert said(server, "absurd") == ["a", "A"]


def test_a_session_that_is_being_written_can_be_forked_and_read_but_not_changed(
    server: LiveServer,
) -> None:
    talk(server, "busy", "a")
    server.engine.say("word " * 2000)
    body = {"model": "nano", "messages": [{"role": "user", "content": "b"}], "stream": True}
    headers = {"authorization": f"Bearer {KEYS['ann']}", "x-session-id": "busy"}
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        for verb, path, given in (
            ("POST", "/rollback", {"to": -1}),
            ("POST", "/forget", {"turns": 0}),
            ("POST", "/erase", None),
            ("DELETE", "", None),
        ):
            refused = call(server, verb, f"/longmem/sessions/busy{path}", json=given)
            assert refused.status_code == 409, refused.text
            assert refused.json()["error"]["code"] == "session_in_use"
            assert int(refused.headers["retry-after-ms"]) > 0
        fork = own(server, "POST", "/busy/fork")
        assert (fork["turns"], said(server, "busy")) == (2, ["a", "A"])
        assert own(server, "GET", "/busy/stats")["turns"] == 2


def test_another_owners_ids_answer_as_ids_that_never_were(server: LiveServer) -> None:
    """Bob asks for Ann's things, then for things that never were: word for word the same."""
    names = _things_of_ann(server)
    item = {"type": "message", "role": "user", "content": "x"}
    requests: list[tuple[str, str, Any]] = [
        ("GET", "/responses/{r}", None),
        ("DELETE", "/responses/{r}", None),
        ("GET", "/responses/{r}/input_items", None),
        ("POST", "/responses/{r}/cancel", None),
        ("POST", "/responses", {"model": "nano", "input": "x", "previous_response_id": "{r}"}),
        ("POST", "/responses", {"model": "nano", "input": "x", "conversation": "{c}"}),
        ("GET", "/conversations/{c}", None),
        ("POST", "/conversations/{c}", {"metadata": {}}),
        ("DELETE", "/conversations/{c}", None),
        ("GET", "/conversations/{c}/items", None),
        ("POST", "/conversations/{c}/items", {"items": [item]}),
        ("GET", "/conversations/{c}/items/{i}", None),
        ("DELETE", "/conversations/{c}/items/{i}", None),
        *[
            (verb, f"/longmem/sessions/{{s}}{path}", body)
            for verb, path, body in (
                ("GET", "", None),
                ("DELETE", "", None),
                ("POST", "/erase", None),
                ("GET", "/turns", None),
                ("POST", "/fork", {"id": "mine"}),
                ("POST", "/rollback", {"to": -1}),
                ("POST", "/forget", {"turns": 0}),
                ("GET", "/stats", None),
                ("POST", "/recall", {"query": "x"}),
            )
        ],
    ]
    unknown = {name: value[:-4] + "0000" for name, value in names.items()}
    for method, path, body in requests:
        theirs = _ask(server, method, path, body, names)
        never = _ask(server, method, path, body, unknown)
        assert theirs.status_code == 404, (method, path, theirs.text)
        assert _shape(theirs, names) == _shape(never, unknown), (method, path)
    listed = own(server, "GET", "", owner="bob")["data"]
    assert not {each["id"] for each in listed} & set(names.values())
    assert server.turns(names["c"], "ann")[-1][1] == "one"


def test_two_owners_use_the_same_names_without_meeting(server: LiveServer) -> None:
    talk(server, "shared", "a")
    talk(server, "shared", "b", owner="bob")
    assert server.turns("shared", "ann") == [("user", "a"), ("assistant", "A")]
    assert server.turns("shared", "bob") == [("user", "b"), ("assistant", "B")]


def _things_of_ann(server: LiveServer) -> dict[str, str]:
    server.engine.say("one")
    client = server.openai(KEYS["ann"])
    conversation = client.conversations.create()
    done = client.responses.create(model="nano", input="secret", conversation=conversation.id)
    item = done.output[0].id
    assert item is not None
    talk(server, "session-of-ann-1234", "a")
    return {"r": done.id, "c": conversation.id, "i": item, "s": "session-of-ann-1234"}


def _ask(server: LiveServer, method: str, path: str, body: Any, names: dict[str, str]) -> Any:
    filled = None
    if body is not None:
        filled = {k: v.format(**names) if isinstance(v, str) else v for k, v in body.items()}
    return call(server, method, path.format(**names), owner="bob", json=filled)


def _shape(answer: Any, names: dict[str, str]) -> tuple[int, str, list[str]]:
    """An answer without the names that were asked for."""
    text = answer.text
    for name, value in names.items():
        text = text.replace(value, f"<{name}>")
    kept = [
        name for name in answer.headers if name not in ("date", "content-length", "x-request-id")
    ]
    return answer.status_code, text, kept


def test_messages_name_sessions_as_their_owner_does(server: LiveServer) -> None:
    talk(server, "named", "a", "b")
    bodies = {"fork": {"at": 0}, "rollback": {"to": 99}, "forget": {"turns": 99}}
    for verb, body in bodies.items():
        refused = call(server, "POST", f"/longmem/sessions/named/{verb}", json=body)
        message = refused.json()["error"]["message"]
        assert refused.status_code == 400 and "'named'" in message, message
        assert "ann:" not in message
