"""Bad input: the right status, the envelope with a string code, and a server that lives on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from server_process import Server, shared

OK = {"model": "nano", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"
PART = "messages[1].content[0].type"
SAID = "Application/JSON; charset=utf-8"


@pytest.fixture(scope="module")
def nano() -> Server:
    return shared()


@pytest.fixture
def http(nano: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=nano.url, timeout=60) as client:
        yield client


def check(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The envelope is whole, and says this."""
    error = response.json()["error"]
    assert response.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str) and isinstance(error["code"], str)
    assert code in (None, error["code"])
    assert response.headers["x-request-id"]
    return error


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, None),
        ({"messages": [{"role": "user", "content": ""}]}, None),
        ({"messages": [{"role": "user", "content": "\u0000"}]}, None),
        ({"messages": [{"role": "assistant", "content": "Hi"}]}, None),
        ({"messages": [{"role": "tool", "content": "x"}]}, None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"model": None}, "model"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**15}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_completion_tokens": 10**30}, None),
        ({"seed": 2**64}, "seed"),
        ({"stop": [""]}, None),
        ({"n": 2}, "n"),
        ({"n": -1}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": {}}, "stop"),
        ({"messages": {}}, "messages"),
        ({"messages": [OK["messages"][0], {"role": "user", "content": [{"text": "x"}]}]}, PART),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_value_that_is_refused_is_named(
    http: httpx.Client, changes: dict[str, Any], param: str | None
) -> None:
    error = check(http.post(CHAT, json={**OK, **changes}), 400)
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/longmem/sessions/x/recall", {"query": ""}, "query"),
        ("/v1/longmem/sessions/x/forget", {"turns": -1}, "turns"),
        ("/v1/longmem/sessions/x/forget", {"turns": [0, -1]}, "turns[1]"),
        ("/v1/longmem/sessions/x/rollback", {}, "to"),
        ("/v1/responses", {"model": "nano", "conversation": {}}, "conversation.id"),
        ("/v1/longmem/sessions?limit=0", None, "limit"),
    ],
    ids=str,
)
def test_a_part_is_called_by_its_name_in_the_request(
    http: httpx.Client, path: str, body: Any, param: str
) -> None:
    error = check(http.request("GET" if body is None else "POST", path, json=body), 400)
    assert error["param"] == param and error["message"].startswith(f"{param}: ")


def test_what_is_wrong_is_told_of_the_type_that_was_meant(http: httpx.Client) -> None:
    error = check(http.post(CHAT, json={**OK, "stop": ["a"] * 17}), 400)
    assert "at most 16" in error["message"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing_required_parameter"),
        (b"{", "invalid_json"),
        (b'{"model": "nano", "temperature": NaN}', "invalid_json"),
        (b'{"model": "nano", "temperature": -Infinity}', "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b'{"model": "\xff"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "invalid_json"),
        (b'{"seed": ' + b"9" * 10_000 + b"}", "invalid_json"),
        (b"[]", None),
        (b"null", None),
        (b"{}", "missing_required_parameter"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_body_that_is_no_request_is_refused(
    http: httpx.Client, body: bytes, code: str | None
) -> None:
    headers = {"content-type": "application/json"}
    check(http.post(CHAT, content=body, headers=headers), 400, code)


def test_a_body_of_another_type_is_refused(http: httpx.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        refused = http.post(CHAT, content=json.dumps(OK), headers={"content-type": kind})
        check(refused, 415, "unsupported_media_type")
    sent = http.post(
        CHAT, content=json.dumps({**OK, "max_tokens": 1}), headers={"content-type": SAID}
    )
    assert sent.status_code == 200


def test_unknown_models_routes_and_methods_are_told_in_the_envelope(http: httpx.Client) -> None:
    check(http.post(CHAT, json={**OK, "model": "gpt-6"}), 404, "model_not_found")
    check(http.get("/v1/nothing"), 404, "not_found")
    check(http.get("/v1/chat/completions/"), 404, "not_found")
    check(http.get(CHAT), 405, "method_not_allowed")
    check(http.request("BREW", "/v1/models"), 405, "method_not_allowed")


@pytest.mark.parametrize(
    "headers",
    [
        {"x-session-id": ""},
        {"x-session-id": "a/b"},
        {"x-session-id": "x" * 300},
        {"x-session-scope": "some"},
        {"x-session-diverge": "explode"},
        {"idempotency-key": "k" * 300, "x-session-id": "refused"},
    ],
    ids=str,
)
def test_headers_that_cannot_work_are_refused(http: httpx.Client, headers: dict[str, str]) -> None:
    check(http.post(CHAT, json=OK, headers=headers), 400)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_message_of_50_megabytes_is_refused_with_413(http: httpx.Client, chunked: bool) -> None:
    text = "x" * (50 * 2**20)
    body = json.dumps({**OK, "messages": [{"role": "user", "content": text}]}).encode()
    parts = (body[at : at + 2**20] for at in range(0, len(body), 2**20)) if chunked else body
    headers = {"content-type": "application/json"}
    check(http.post(CHAT, content=parts, headers=headers), 413, "request_too_large")
    check(http.get("/v1/nothing"), 404)


def test_a_turn_above_its_limit_is_refused_with_413(http: httpx.Client) -> None:
    text = "word " * 2**20
    message = {"role": "user", "content": text}
    check(http.post(CHAT, json={**OK, "messages": [message]}), 413, "turn_too_large")


def test_a_client_that_asks_before_it_sends_hears_413_at_once(nano: Server) -> None:
    with socket.create_connection(("127.0.0.1", nano.port), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
        )
        assert raw.recv(64).startswith(b"HTTP/1.1 413")


def test_what_is_no_http_harms_nobody(nano: Server, http: httpx.Client) -> None:
    for junk in (
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n" * 100_000,
        b"A" * 10**6,
    ):
        with socket.create_connection(("127.0.0.1", nano.port), timeout=20) as raw:
            try:
                raw.sendall(junk)
                raw.shutdown(socket.SHUT_WR)
                raw.recv(64)
            except ConnectionError:
                pass
    assert http.get("/health").json() == {"status": "ok"}


def test_an_error_of_the_framework_says_nothing_of_the_inside(http: httpx.Client) -> None:
    error = check(http.post(CHAT, json={**OK, "messages": [{"role": "user"}, 7]}), 400)
    assert "pydantic" not in json.dumps(error) and "http" not in error["message"]
