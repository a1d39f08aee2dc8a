"""Many clients at once, with failures: no turn is lost, doubled, or crosses into another session."""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from server_process import Server, shared

from longmem.stores import SQLiteStore

CLIENTS = 64
SECONDS = float(os.environ.get("LONGMEM_LOAD_SECONDS", "10"))
"""Length of the run; set it to 60 for the full one."""
FAULTS = ("", "", "", "before", "after", "cut", "leave")
"""What may go wrong with a request: nothing, a status 500 before or after the work was done, a connection
that breaks when the work was done, a client that leaves in the middle."""
TRIES = 400


@pytest.fixture(scope="module")
def echo() -> Server:
    return shared("echo")


@dataclass
class Talk:
    """One client's session, and what it must hold.

    Args:
        name: of the session; stands in every message of it.
        random: decides what goes wrong.
    """

    name: str
    random: random.Random
    said: list[str] = field(default_factory=list)
    faults: int = 0

    async def run(self, client: openai.AsyncOpenAI, until: float) -> None:
        """Send messages until the time is over."""
        while time.monotonic() < until:
            text = f"{self.name} says {len(self.said)}"
            fault = self.random.choice(FAULTS)
            self.faults += bool(fault)
            if fault == "leave" and await self._leave(client, text):
                continue  # dropped: the next message is in its place
            await self._say(client, text, fault)
            self.said.append(text)

    async def _say(self, client: openai.AsyncOpenAI, text: str, fault: str) -> None:
        """Repeat until the reply is there whole, as the client's own retries do."""
        for count in range(TRIES):
            headers = {"x-fault": "" if fault == "leave" else fault}
            headers |= {"x-stainless-retry-count": str(count)} if count else {}
            try:
                reply = await _reply(client, self.name, text, headers)
            except (openai.APIConnectionError, openai.InternalServerError, openai.ConflictError):
                await asyncio.sleep(0.02)
                continue
            assert reply == f"You said: {text}"
            return
        raise AssertionError(f"{text}: no reply after {TRIES} tries")

    async def _leave(self, client: openai.AsyncOpenAI, text: str) -> bool:
        """Leave in the middle of the reply. False if the session was still busy with an earlier one."""
        try:
            stream = await _stream(client, self.name, f"{text} (left)", {})
        except openai.ConflictError:
            return False
        async for _ in stream:
            break
        await stream.close()
        return True


async def _stream(
    client: openai.AsyncOpenAI, session: str, text: str, headers: dict[str, str]
) -> Any:
    return await client.chat.completions.create(
        model="nano",
        messages=[{"role": "user", "content": text}],
        stream=True,
        extra_headers={"x-session-id": session, **headers},
    )


async def _reply(
    client: openai.AsyncOpenAI, session: str, text: str, headers: dict[str, str]
) -> str:
    """The whole text; an error where the stream ends before its finish."""
    said, finish = "", None
    try:
        async for chunk in await _stream(client, session, text, headers):
            said += chunk.choices[0].delta.content or ""
            finish = finish or chunk.choices[0].finish_reason
    except openai.APIStatusError:
        raise
    except Exception as error:  # httpx's own, of a connection that broke in a stream
        raise openai.APIConnectionError(request=None) from error  # type: ignore[arg-type]
    if finish is None:
        raise openai.APIConnectionError(request=None)  # type: ignore[arg-type]
    return said


async def _all(server: Server, talks: list[Talk]) -> None:
    until = time.monotonic() + SECONDS
    async with server.async_openai(timeout=120.0) as client:
        await asyncio.gather(*(talk.run(client, until) for talk in talks))


def test_64_streaming_clients_lose_double_and_cross_nothing(echo: Server) -> None:
    talks = [Talk(f"client-{i}", random.Random(i)) for i in range(CLIENTS)]
    asyncio.run(_all(echo, talks))
    print(f"{sum(len(t.said) for t in talks)} exchanges, {sum(t.faults for t in talks)} faults")
    assert sum(talk.faults for talk in talks) > CLIENTS / 4
    with SQLiteStore(echo.store, read_only=True) as store:
        assert [problem for talk in talks for problem in store.verify(talk.name)] == []
        kept = {talk.name: store.open(talk.name).turns() for talk in talks}
    for talk in talks:
        turns = [turn.text for turn in kept[talk.name]]
        # A message whose sender left may have been committed before that was noticed, once.
        users = [text for text in turns[::2] if not text.endswith("(left)")]
        assert users == talk.said, talk.name
        assert len(set(turns[::2])) >= len(users)
        assert turns[1::2] == [f"You said: {text}" for text in turns[::2]], talk.name
        assert all(talk.name in text for text in turns)
