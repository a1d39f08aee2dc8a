"""Connections that ask for nothing are cut; those with a request under way are not."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from live_server import LiveServer

from longmem.adapters.server.connections import Connections, most_connections


class Connection:
    """What of uvicorn's protocols is looked at."""

    def __init__(self) -> None:
        self.cycle: Any = None
        self.cut = False
        self.transport = SimpleNamespace(abort=lambda: setattr(self, "cut", True))

    def ask(self, *, answered: bool) -> None:
        self.cycle = SimpleNamespace(response_complete=answered)


def test_a_request_that_does_not_begin_in_time_loses_its_connection() -> None:
    silent, busy, between = Connection(), Connection(), Connection()
    busy.ask(answered=False)
    between.ask(answered=True)
    watch = Connections({silent, busy, between}, 10.0, 100)
    watch.check(0.0)
    watch.check(9.0)
    assert not silent.cut
    between.ask(answered=True)  # another request, begun and answered between two looks
    watch.check(11.0)
    assert (silent.cut, busy.cut, between.cut) == (True, False, False)
    busy.cycle.response_complete = True
    watch.check(12.0)
    watch.check(20.0)
    assert not busy.cut
    watch.check(23.0)
    assert busy.cut and between.cut


def test_where_there_are_too_many_those_go_that_wait_longest() -> None:
    first, second, third, busy = (Connection() for _ in range(4))
    busy.ask(answered=False)
    connections = {first, busy}
    watch = Connections(connections, 100.0, 2)
    watch.check(0.0)
    connections.add(second)
    connections.add(third)
    watch.check(1.0)
    assert (first.cut, busy.cut) == (True, False)
    assert second.cut != third.cut


def test_there_are_files_left_for_the_store() -> None:
    assert 16 <= most_connections() <= 8192


def test_half_sent_headers_are_cut_and_the_server_goes_on(tmp_path: Path) -> None:
    with LiveServer(tmp_path, header_seconds=0.5) as server:
        port = int(server.url.rsplit(":", 1)[1])
        for sent in (b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
                slow.sendall(sent)
                with suppress(ConnectionResetError):
                    assert slow.recv(64) == b""
        assert httpx.get(f"{server.url}/health").status_code == 200
