"""One owner's long replies leave room for those of others."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
from live_server import LiveServer

KEYS = {"ann": "key-of-ann-1", "bob": "key-of-bob-1"}
MANY = 64
"""What one owner may have under way."""
SOON = 30.0


async def _bob_beside_ann(server: LiveServer) -> httpx.Response:
    url = f"{server.url}/v1/chat/completions"
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=200)) as http:

        def ask(owner: str, text: str, most: int) -> asyncio.Task[httpx.Response]:
            body = {"messages": [{"role": "user", "content": text}], "max_tokens": most}
            headers = {"authorization": f"Bearer {KEYS[owner]}"}
            return asyncio.create_task(
                http.post(url, json={"model": "nano", **body}, headers=headers)
            )

        long = [ask("ann", "long", 30_000) for _ in range(MANY)]
        async with asyncio.timeout(SOON):
            while server.engine.said < MANY:
                await asyncio.sleep(0.05)
        try:
            async with asyncio.timeout(SOON):
                return await ask("bob", "short", 1)
        finally:
            for task in long:
                task.cancel()
            await asyncio.gather(*long, return_exceptions=True)


def test_as_many_whole_replies_as_an_owner_may_ask_for_keep_nobody_else_waiting(
    tmp_path: Path,
) -> None:
    with LiveServer(tmp_path, keys=KEYS) as server:
        server.engine.script = lambda read: "la " * 10_000 if "long" in read else "hi"
        answer = asyncio.run(_bob_beside_ann(server))
        assert answer.status_code == 200, answer.text
