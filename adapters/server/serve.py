"""`run`: serve an application until SIGTERM or Ctrl-C, letting the replies under way end."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from longmem.adapters.server.connections import Connections, most_connections
from longmem.adapters.server.context import Context
from longmem.adapters.server.settings import Settings
from longmem.errors import ConfigError

_SEND_BUFFER = 64 * 2**10
"""Bytes the system buffers for each client: a reply is not decoded far ahead of who reads it, and who
does not read is noticed."""
_BACKLOG = 128
"""Connections that wait to be taken. While there are no file descriptors left, asyncio logs an error for
each of them every second."""
_LAST_SECONDS = 5
"""After the time for draining: how long dropped requests may take to leave."""


def run(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    announce: Callable[[str], None] | None = None,
    log_level: str = "warning",
) -> None:
    """Serve until the process is asked to end.

    The first SIGTERM or SIGINT lets running replies end and answers all else with 503; the second ends
    at once, and what is under way is not committed.

    Args:
        app: of `create_app`.
        host: address to listen on. Without API keys only this machine's own.
        port: 0 takes a free one.
        announce: called with the address once requests are taken.
        log_level: uvicorn's.

    Raises:
        ConfigError: the address is open to others and no API key is set, or cannot be listened on.
    """
    context: Context = app.state.context
    check_address(host, context.settings)
    bound = _bind(host, port)
    name = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        app,
        log_level=log_level,
        access_log=False,
        server_header=False,
        ws="none",
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_LAST_SECONDS,
    )
    server = _Server(config, context)
    server.on_started = lambda: announce and announce(f"http://{name}:{bound.getsockname()[1]}")
    server.run([bound])


def check_address(host: str, settings: Settings) -> None:
    """Refuse to let everybody in from everywhere.

    Raises:
        ConfigError: the address is not of this machine alone, and no API key is set.
    """
    if not settings.keys and host not in ("localhost", "127.0.0.1", "::1"):
        raise ConfigError(
            f"without an API key the server listens on this machine alone, and {host} is open to "
            "others; set one (--api-key NAME:KEY), or leave --host out"
        )


class _Server(uvicorn.Server):
    """uvicorn, but a signal first lets replies end while new requests are told to go elsewhere."""

    def __init__(self, config: uvicorn.Config, context: Context) -> None:
        super().__init__(config)
        self._context = context
        self._deadline = 0.0
        seconds = context.settings.header_seconds
        self._connections = Connections(self.server_state.connections, seconds, most_connections())
        self.on_started: Callable[[], object] = lambda: None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._context.traffic.draining:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)  # leaving in order would wait for every thread
        self._deadline = time.monotonic() + self._context.settings.drain_seconds
        self._context.traffic.draining = True

    async def on_tick(self, counter: int) -> bool:
        traffic, now = self._context.traffic, time.monotonic()
        self._connections.check(now)
        if traffic.draining and now > self._deadline:
            traffic.drop()
        if traffic.draining and (not traffic.running or now > self._deadline + _LAST_SECONDS):
            self.should_exit = True
        return await super().on_tick(counter)


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # "localhost" may be both; most clients try IPv4.
        family, kind, proto, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER
        )  # connections inherit it
        bound.bind(address)
    except OSError as error:
        raise ConfigError(
            f"{host} port {port} cannot be listened on: {error.strerror}; choose another --port"
        ) from None
    return bound
