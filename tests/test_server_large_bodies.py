"""Small texts that stand for very many values: refused before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.exceptions import HTTPException
from live_server import LiveServer

from longmem.adapters.server import aside, chat, routing
from longmem.adapters.server.strict_json import strict_json

MOST = 20_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("large"), max_values=MOST) as running:
        yield running


def post(server: LiveServer, path: str, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{server.url}/v1{path}", content=body, headers=headers, timeout=60)


def count(value: Any) -> int:
    """JSON values in a value, itself among them."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count, inside))


@pytest.mark.parametrize(
    "value",
    [
        5,
        [1, [2, 3], {"a": [4, {"b": "c"}]}],
        ["[{,]" * 50, 'a"b[,\\', {"[,": "\\"}],
        {"messages": [{"role": "user", "content": "a, b, [c]"}] * 30},
    ],
    ids=count,
)
def test_every_value_counts_and_what_stands_in_strings_does_not(value: Any) -> None:
    body, n = json.dumps(value).encode(), count(value)
    assert strict_json(body, 10 * n) == value
    empties = 2  # a list's or object's beginning counts for its first value
    with pytest.raises(HTTPException) as refused:
        strict_json(json.dumps([value] * 12).encode(), 10 * n - empties)
    assert refused.value.status_code == 413


@pytest.mark.parametrize(
    "body",
    [b"[" + b"[]," * 400_000 + b"[]]", b'"' * 800_000, b"]" * 800_000, b"{" + b'"":' * 400_000],
    ids=lambda body: repr(body[:8]),
)
def test_nothing_is_made_of_a_body_that_holds_too_much(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(HTTPException) as refused:
        strict_json(body, 1000)
    assert refused.value.status_code == 413


@pytest.mark.parametrize(
    "body",
    [b'["' + b'\\"' * 2_000_000, b"\\" * 4_000_000, b" " * 4_000_000, b'{"a' * 30],
    ids=lambda body: repr(body[:8]),
)
def test_a_text_that_is_no_json_is_refused_however_it_ends(body: bytes) -> None:
    with pytest.raises(json.JSONDecodeError):
        strict_json(body, 1000)


@pytest.mark.parametrize("path", ["/chat/completions", "/responses", "/conversations"])
def test_too_many_values_are_refused_with_413(server: LiveServer, path: str) -> None:
    item = {"role": "user", "content": "a"}
    body = {"model": "nano", "messages": [item] * MOST, "input": [[]] * MOST, "items": [[]] * MOST}
    refused = post(server, path, json.dumps(body).encode())
    assert refused.status_code == 413
    assert refused.json()["error"]["code"] == "too_many_values"
    assert f"{MOST:,}" in refused.json()["error"]["message"]


def test_a_long_body_is_read_beside_the_event_loop(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    much: list[str] = []
    real = aside.aside_if

    async def watched(is_much: bool, call: Any, *args: Any) -> Any:
        if is_much:
            much.append(call.__name__)
        return await real(is_much, call, *args)

    monkeypatch.setattr(routing, "aside_if", watched)
    monkeypatch.setattr(chat, "aside_if", watched)
    messages = [{"role": "user", "content": "word " * 40}, {"role": "assistant", "content": "b"}]
    body = {"model": "nano", "messages": messages * 300 + [messages[0]], "max_tokens": 10**9}
    assert post(server, "/chat/completions", json.dumps(body).encode()).status_code == 400
    assert much == ["strict_json", "chat_request"]
    body["messages"] = messages[:1]
    assert post(server, "/chat/completions", json.dumps(body).encode()).status_code == 400
    assert len(much) == 2


def test_the_first_wrong_message_of_many_is_named(server: LiveServer) -> None:
    messages: list[Any] = [{"role": "user", "content": "a"}] * 3000 + [5] * 3000
    body = json.dumps({"model": "nano", "messages": messages}).encode()
    refused = post(server, "/chat/completions", body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages[3000]")


def test_what_one_call_gives_keeps_the_context_of_its_task(tmp_path: Path) -> None:
    import asyncio
    import contextvars

    name = contextvars.ContextVar("name", default="")

    async def main() -> list[str]:
        name.set("asked")
        return [await aside.aside_if(much, name.get) for much in (False, True)]

    assert asyncio.run(main()) == ["asked", "asked"]
