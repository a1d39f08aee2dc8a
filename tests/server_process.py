"""A server in a process of its own, for tests that drive it over real sockets.

    with Server(folder) as server:                     # `longmem serve` with nano
        server.openai().chat.completions.create(...)
    with Server(folder, scripted=["Hello!"]) as server:  # tests/scripted.py's engine
        ...

Run as a program it is that second server: the product's application and `run`, over a scripted engine
or nano with a small memory, with `Faults` in front of it.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai

_STARTS_IN = 120.0
_STOPS_IN = 60.0
_LAST_WORDS = 4
"""Messages of a stream that are its finish, its token counts, its end mark and its end."""


class Server:
    """A running server; leave the block to end it.

    Args:
        store: folder of its store; kept as `store`.
        options: of `longmem serve`; not with `scripted` or `settings`.
        scripted: replies in order, or "echo" (see `echo`); the engine is then the scripted one.
        settings: of `longmem.adapters.server.Settings`, for what the command has no option for.
        keys: owner -> key.
        small: nano with a memory so small that a short chat reaches every part of it.
    """

    def __init__(
        self,
        store: Path,
        *options: str,
        scripted: Sequence[str] | str | None = None,
        settings: Mapping[str, Any] | None = None,
        keys: Mapping[str, str] | None = None,
        small: bool = False,
    ) -> None:
        self.store = store
        self._keys = dict(keys or {})
        env = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
        if scripted is None and settings is None and not small:
            arguments = ["-P", "-m", "longmem.cli", "serve", "--store", str(store), "--port", "0"]
            arguments += options
            env["LONGMEM_API_KEYS"] = ",".join(f"{o}:{k}" for o, k in self._keys.items())
        else:
            assert not options, "these are for the command"
            spec = {
                "store": str(store),
                "scripted": scripted
                if scripted is None or isinstance(scripted, str)
                else [*scripted],
                "settings": dict(settings or {}),
                "keys": self._keys,
            }
            arguments = [__file__, json.dumps(spec)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `close`
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=env,
        )
        self.url = self._wait()
        """Without a path."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return int(self.url.rsplit(":", 1)[1])

    def openai(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The official client.

        Args:
            key: an API key; default the first of `keys`.
            options: of the client; it does not retry unless told to.
        """
        return openai.OpenAI(**self._client_options(key, options))

    def async_openai(self, key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """`openai` for asyncio."""
        return openai.AsyncOpenAI(**self._client_options(key, options))

    def stop(self) -> int:
        """Ask it to end, and wait; gives the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_STOPS_IN)

    def kill(self) -> None:
        """End it in the middle of whatever it does."""
        self.process.kill()
        self.process.wait(_STOPS_IN)

    def errors(self) -> str:
        """What it wrote to standard error so far."""
        self._errors.seek(0)
        return self._errors.read()

    def close(self) -> None:
        """End it, if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_STOPS_IN)
            except subprocess.TimeoutExpired:
                self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()

    def _client_options(self, key: str | None, options: dict[str, Any]) -> dict[str, Any]:
        known = next(iter(self._keys.values()), "none")
        base = {"base_url": f"{self.url}/v1", "api_key": key or known, "max_retries": 0}
        return {**base, "timeout": 60.0, **options}

    def _wait(self) -> str:
        """The address, once it is announced."""
        assert self.process.stdout is not None
        watchdog = threading.Timer(_STARTS_IN, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if "listens on" not in line:
            self.process.wait(_STOPS_IN)
            raise AssertionError(f"the server did not start: {line}{self.errors()}")
        return line.split()[-1]


@functools.cache
def shared(scripted: str | None = None) -> Server:
    """One server for all tests that ask for nothing special: `longmem serve` with nano, or "echo".

    Sessions of other tests live in it, too: use ids of your own. It ends with the test run.
    """
    folder = tempfile.TemporaryDirectory(prefix="longmem-served-")
    settings = None if scripted is None else {"max_concurrent": 256}
    server = Server(Path(folder.name) / "store", scripted=scripted, settings=settings)
    atexit.register(folder.cleanup)
    atexit.register(server.close)
    return server


def echo(read: str) -> str:
    """The script "echo": says once more what it was told last.

    To ``call NAME {...} {...}`` it calls the tool of that name with each of the arguments.
    """
    role, _, text = read.rpartition("<|im_end|>")[0].rpartition("<|im_start|>")[2].partition("\n")
    if role == "user" and text.startswith("call "):
        _, name, arguments = text.split(" ", 2)
        calls = [f'{{"name": "{name}", "arguments": {each}}}' for each in arguments.split(" & ")]
        return "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)
    if "<tool_response>" in text:
        return "It said: " + text.rpartition("<tool_response>\n")[2].partition("\n</tool_")[0]
    return f"It said: {text}" if role == "tool" else f"You said: {text}"


class Faults:
    """Test-only middleware: goes wrong where a request asks for it in the header ``x-fault``.

    ``before``: status 500, and the application never sees the request. ``after``: it does its work, and
    the client is told 500. ``cut``: it does its work, and the connection breaks before its last words.
    Only on the first try; the official client says which one it is.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        fault = headers.get(b"x-fault", b"").decode()
        if not fault or headers.get(b"x-stainless-retry-count", b"0") != b"0":
            await self._app(scope, receive, send)
        elif fault == "before":
            while (await receive()).get("more_body", False):
                pass
            await _fail(send)
        elif fault == "after":
            await self._app(scope, receive, _ignore)
            await _fail(send)
        else:
            held: list[Any] = []

            async def late(message: Any) -> None:
                held.append(message)
                if message["type"] == "http.response.start" or len(held) > _LAST_WORDS:
                    await send(held.pop(0))

            await self._app(scope, receive, late)
            raise ConnectionResetError("injected")


async def _ignore(message: Any) -> None:
    """Takes a response that nobody is to see."""


async def _fail(send: Any) -> None:
    body = b'{"error": {"message": "injected", "type": "server_error", "param": null, "code": "x"}}'
    headers = [(b"content-type", b"application/json"), (b"retry-after-ms", b"20")]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main(spec: Mapping[str, Any]) -> None:
    """Serve over the engine that `spec` asks for, with `Faults` in front."""
    import torch
    from conftest import SMALL
    from scripted import scripted_engine

    from longmem import Engine, SessionPool
    from longmem.adapters.server import ApiKey, Settings, create_app, run
    from longmem.dialogue import Dialogue
    from longmem.stores import SQLiteStore

    torch.set_num_threads(1)
    script = echo if spec["scripted"] == "echo" else spec["scripted"]
    engine = Engine.nano(SMALL) if script is None else scripted_engine(script)
    keys = tuple(ApiKey(*pair) for pair in spec["keys"].items())
    settings = Settings(**{"model": "nano", "keys": keys, **spec["settings"]})
    with (
        SQLiteStore(spec["store"]) as store,
        SessionPool(engine, store) as pool,
        Dialogue(engine, store, pool=pool) as dialogue,
    ):
        app = create_app(dialogue, settings)
        app.add_middleware(Faults)
        run(app, port=0, announce=lambda url: print(f"listens on {url}", flush=True))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main(json.loads(sys.argv[1]))
