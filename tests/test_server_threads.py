"""Requests that wait for something long do not keep others from being answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_server import LiveServer

from longmem.errors import SessionNotFoundError

KEYS = {"ann": "key-of-ann-1", "bob": "key-of-bob-1"}
WAITING = 64


@pytest.fixture
def busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveServer]:
    """All the requests that one owner may have wait for the store."""
    free, arrived = threading.Event(), threading.Semaphore(0)

    def stuck(*args: Any, **options: Any) -> Any:
        arrived.release()
        assert free.wait(60)
        raise SessionNotFoundError("gone")

    with (
        LiveServer(tmp_path, keys=KEYS, max_concurrent=WAITING) as server,
        ThreadPoolExecutor(WAITING) as threads,
        httpx.Client(base_url=server.url, timeout=60, limits=httpx.Limits()) as http,
    ):
        monkeypatch.setattr(server.dialogue, "info", stuck)
        url, headers = "/v1/longmem/sessions/x", {"authorization": f"Bearer {KEYS['ann']}"}
        sent = [threads.submit(http.get, url, headers=headers) for _ in range(WAITING)]
        try:
            assert all(arrived.acquire(timeout=30) for _ in range(WAITING))
            yield server
        finally:
            free.set()
            assert {each.result().status_code for each in sent} == {404}


def test_long_waits_of_one_owner_leave_threads_for_others(busy: LiveServer) -> None:
    headers = {"authorization": f"Bearer {KEYS['bob']}"}
    with httpx.Client(base_url=busy.url, headers=headers, timeout=20) as http:
        for path in ("/health", "/health/ready", "/v1/models", "/v1/longmem/sessions"):
            assert http.get(path).status_code == 200
