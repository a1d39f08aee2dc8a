"""A server on a thread of the test's own process: real sockets, and a script that tests can write.

with LiveServer(tmp_path) as server:
    server.engine.say("Hello!")
    server.openai().responses.create(model="nano", input="Hi")
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import openai
from scripted import Scripted, scripted_engine

from longmem.adapters.server import ApiKey, Settings, create_app, run
from longmem.dialogue import Dialogue
from longmem.stores import SQLiteStore

_STARTS_IN = _STOPS_IN = 60.0


class LiveServer:
    """Serves a scripted engine over a store in `folder` while its block runs.

    Args:
        folder: of the store.
        keys: owner -> API key.
        settings: of `Settings`.
    """

    def __init__(
        self, folder: Path, *, keys: Mapping[str, str] | None = None, **settings: Any
    ) -> None:
        self.engine: Scripted = scripted_engine([])
        self.store = SQLiteStore(folder / "store")
        self.dialogue = Dialogue(self.engine, self.store)
        self._keys = dict(keys or {})
        api_keys = tuple(ApiKey(*pair) for pair in self._keys.items())
        self.app = create_app(
            self.dialogue, Settings(**{"model": "nano", "keys": api_keys, **settings})
        )
        self._started, self.url = threading.Event(), ""
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(_STARTS_IN), "the server did not start"
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.app.state.context.traffic.draining = True
        self._thread.join(_STOPS_IN)
        self.dialogue.close()
        self.store.close()

    def openai(self, key: str | None = None, **options: Any) -> openai.OpenAI:
        """The official client; it does not retry unless told to."""
        return openai.OpenAI(**self._options(key, options))

    def async_openai(self, key: str | None = None, **options: Any) -> openai.AsyncOpenAI:
        """`openai` for asyncio."""
        return openai.AsyncOpenAI(**self._options(key, options))

    def turns(self, session: str, owner: str | None = None) -> list[tuple[str, str]]:
        """(role, text) of a session's turns."""
        return [(turn.role, turn.text) for turn in self.dialogue.turns(owner, session)]

    def _options(self, key: str | None, options: dict[str, Any]) -> dict[str, Any]:
        known = key or next(iter(self._keys.values()), "none")
        base = {"base_url": f"{self.url}/v1", "api_key": known, "max_retries": 0, "timeout": 60.0}
        return {**base, **options}

    def _serve(self) -> None:
        run(self.app, port=0, announce=self._announced)

    def _announced(self, url: str) -> None:
        self.url = url
        self._started.set()
