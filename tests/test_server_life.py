"""A server's life: clients that leave, stall or collide; SIGTERM, kill -9, and going on afterwards."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from command import Command
from server_process import Server, shared

from longmem.stores import SQLiteStore

LONG = "word " * 400
FACT = "My locker code is 482913. "
QUESTION = "What is my locker code?"


@pytest.fixture(scope="module")
def server() -> Server:
    return shared("echo")


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that waits for its clients no longer than it must."""
    settings = {"send_seconds": 1.0, "body_seconds": 0.5, "drain_seconds": 0.5}
    folder = tmp_path_factory.mktemp("impatient") / "s"
    with Server(folder, scripted="echo", settings=settings) as running:
        yield running


def ask(client: openai.OpenAI, session: str, text: str, **options: Any) -> Any:
    return client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": text}],
        extra_headers={"x-session-id": session},
        **options,
    )


def cached(client: openai.OpenAI, session: str) -> int:
    """Tokens the session holds."""
    done = ask(client, session, "?", store=False)
    tokens: int = done.usage.prompt_tokens_details.cached_tokens
    return tokens


def eventually(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until it does."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def running(server: Server) -> float:
    """Exchanges under way, as /metrics has them."""
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("longmem_num_requests")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def test_a_client_that_leaves_cancels_and_nothing_is_committed(server: Server) -> None:
    client = server.openai()
    ask(client, "leaves", "Hello")
    before = cached(client, "leaves")
    stream = ask(client, "leaves", LONG, stream=True)
    next(iter(stream))
    stream.close()
    eventually(lambda: running(server) == 0)
    assert cached(client, "leaves") == before
    with pytest.raises(openai.APITimeoutError):
        ask(
            server.openai(timeout=0.3), "leaves", LONG * 5
        )  # no stream: it waits for the whole reply
    eventually(lambda: running(server) == 0)
    assert cached(client, "leaves") == before
    assert (
        ask(client, "leaves", "Still there?").choices[0].message.content == "You said: Still there?"
    )


def test_a_session_is_never_written_by_two_requests_at_once(server: Server) -> None:
    client = server.openai()
    stream = ask(client, "busy", LONG, stream=True)
    next(iter(stream))
    with pytest.raises(openai.ConflictError) as refused:
        ask(client, "busy", "Me too")
    headers = refused.value.response.headers
    assert refused.value.code == "session_in_use"
    assert int(headers["retry-after-ms"]) > 0 and headers["x-should-retry"] == "true"
    waiter = threading.Thread(target=lambda: list(stream))
    waiter.start()
    patient = server.openai(max_retries=200)
    assert ask(patient, "busy", "Me too").choices[0].message.content == "You said: Me too"
    waiter.join()


def test_a_client_that_stops_reading_is_cut_and_disturbs_nobody(impatient: Server) -> None:
    client = impatient.openai()
    body = {"model": "nano", "stream": True, "max_tokens": 10_000}
    body["messages"] = [{"role": "user", "content": "word " * 2500}]
    with _stalled(impatient, body):
        eventually(lambda: running(impatient) > 0)
        assert ask(client, "other", "Hi").choices[0].message.content == "You said: Hi"
        eventually(lambda: running(impatient) == 0, 90)
    eventually(lambda: "read nothing" in impatient.errors())
    assert "Traceback" not in impatient.errors()
    assert cached(client, "stalled") == 0


def _stalled(server: Server, body: dict[str, Any]) -> socket.socket:
    """A connection that sends its request and then takes nothing."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    raw.connect(("127.0.0.1", server.port))
    content = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nx-session-id: stalled\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    raw.sendall(head.encode() + content)
    return raw


def test_a_client_that_stops_sending_is_sent_away(impatient: Server) -> None:
    with socket.create_connection(("127.0.0.1", impatient.port), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"
        )
        answer = raw.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408") and b"body_timeout" in answer


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The command itself, with nano, a second time: the first time it was killed in a reply."""
    store = tmp_path_factory.mktemp("night") / "s"
    with Server(store) as server:
        ask(server.openai(), "night", FACT)
        stream = ask(server.openai(), "night", QUESTION, stream=True)
        next(iter(stream))
        server.kill()
    with Server(store) as server:
        yield server


def test_after_kill_9_the_sessions_go_on_where_they_stood(night: Server) -> None:
    done = ask(night.openai(), "night", QUESTION)
    assert "482913" in done.choices[0].message.content
    details = done.usage.prompt_tokens_details
    assert done.usage.prompt_tokens - details.cached_tokens < details.cached_tokens


def test_sigterm_lets_running_replies_end_and_takes_no_new_ones(night: Server) -> None:
    """The last test of this server."""
    client, replies = night.openai(), []
    long = threading.Thread(target=lambda: replies.append(ask(client, "drained", FACT * 400)))
    long.start()
    eventually(lambda: running(night) > 0)
    night.process.send_signal(signal.SIGTERM)
    eventually(lambda: _draining(night))
    assert httpx.get(f"{night.url}/health").status_code == 200
    with pytest.raises(openai.InternalServerError) as refused:
        ask(client, "late", "Hi")
    assert (refused.value.status_code, refused.value.code) == (503, "shutting_down")
    long.join()
    assert replies[0].choices[0].finish_reason == "stop"
    assert night.process.wait(30) == 0
    assert "Traceback" not in night.errors()
    with SQLiteStore(night.store) as store:
        turns = {info.id: info.n_turns for info in store.sessions()}
        assert turns["drained"] == 2 and "late" not in turns
        assert store.verify() == []


def _draining(server: Server) -> bool:
    return httpx.get(f"{server.url}/health/ready").status_code == 503


def test_the_command_refuses_a_store_in_use_and_an_open_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longmem = Command(monkeypatch, capsys)
    with SQLiteStore(tmp_path / "s"):
        done = longmem("serve", "--store", str(tmp_path / "s"))
    assert done.code == 1 and done.err.startswith("longmem: ")
    done = longmem("serve", "--store", str(tmp_path / "t"), "--host", "0.0.0.0")
    assert done.code == 1 and "--api-key NAME:KEY" in done.err
    assert not (tmp_path / "t").exists()


def test_replies_that_do_not_end_in_time_are_dropped_and_their_clients_told(
    impatient: Server,
) -> None:
    """The last test of this server."""
    stream = ask(impatient.openai(), "dropped", "word " * 5000, stream=True, max_tokens=20_000)
    pieces = iter(stream)
    next(pieces)
    impatient.process.send_signal(signal.SIGTERM)
    with pytest.raises(openai.APIError, match="shutting down"):
        list(pieces)
    assert impatient.process.wait(30) == 0
    assert "Traceback" not in impatient.errors()
    with SQLiteStore(impatient.store) as store:
        assert {info.id: info.n_turns for info in store.sessions()}.get("dropped", 0) == 0
        assert store.verify() == []


def test_a_second_signal_ends_at_once_and_commits_nothing(tmp_path: Path) -> None:
    with Server(tmp_path / "s", scripted="echo") as server:
        stream = ask(server.openai(), "cut", "word " * 5000, stream=True, max_tokens=20_000)
        next(iter(stream))
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: _draining(server))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == -signal.SIGTERM
    with SQLiteStore(tmp_path / "s") as store:
        assert {info.id: info.n_turns for info in store.sessions()}.get("cut", 0) == 0
        assert store.verify() == []
