"""The MCP server: an agent's client lists, reads, recalls and forgets sessions; what cannot be done
is a tool error with words, and the server lives on."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command import Command
from conftest import SMALL
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult
from scripted import scripted_engine
from test_examples import run

from longmem import Engine
from longmem.adapters.mcp import mcp_server
from longmem.dialogue import Dialogue, Message, Request
from longmem.store import Store
from longmem.stores import SQLiteStore

FACTS = ["My locker code is 4417.", "Bob's home town is Bergen.", "Our bank pin is 40172."]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.nano(SMALL)


@pytest.fixture(scope="module")
def folder(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a session that is longer than the window, and those of two owners."""
    folder = tmp_path_factory.mktemp("store")
    with SQLiteStore(folder) as store:
        with engine.session("alice", store=store, metadata={"model": "nano"}) as session:
            for fact in FACTS:
                session.add([("user", fact), ("assistant", "Okay, I will remember that.")])
            session.add([("user", "Nothing much happened today. " * 12), ("assistant", "I see.")])
        with Dialogue(engine, store) as dialogue:
            for owner in ("ann", "bob"):
                asked = Message("user", f"I am {owner}.")
                dialogue.reply(Request([asked], session="chat", owner=owner))
    return folder


@pytest.fixture
def opened(folder: Path) -> Iterator[Callable[[bool], Store]]:
    yield lambda read_only: SQLiteStore(folder, read_only=read_only)


def talk(server: Any, conversation: Callable[[Client], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with Client(server, read_timeout_seconds=60) as client:
            return await conversation(client)

    return asyncio.run(main())


def call(server: Any, tool: str, **arguments: Any) -> CallToolResult:
    return talk(server, lambda client: client.call_tool(tool, arguments))  # type: ignore[no-any-return]


def value(result: CallToolResult) -> Any:
    assert not result.is_error, result.content
    assert result.structured_content is not None
    found = result.structured_content
    return found["result"] if set(found) == {"result"} else found


def error(result: CallToolResult) -> str:
    assert result.is_error
    return "\n".join(part.text for part in result.content if part.type == "text")


def test_sessions_are_listed_the_latest_first(opened: Callable[[bool], Store]) -> None:
    server = mcp_server(opened)
    listed = value(call(server, "list_sessions"))
    assert [each["id"] for each in listed] == ["bob:chat", "ann:chat", "alice"]
    assert listed[2]["turns"] == 8 and listed[2]["model"] == "nano" and listed[2]["tokens"] > 80
    assert value(call(server, "list_sessions", start=1, limit=1)) == listed[1:2]


def test_a_session_is_read_a_page_at_a_time(opened: Callable[[bool], Store]) -> None:
    server = mcp_server(opened)
    page = value(call(server, "show_session", session_id="alice", limit=3))
    assert [turn["text"] for turn in page["turns"]] == [
        *(FACTS[0], "Okay, I will remember that.", FACTS[1])
    ]
    assert page["next"] == 3
    end = value(call(server, "show_session", session_id="alice", start=-2))
    assert [turn["turn"] for turn in end["turns"]] == [6, 7] and end["next"] is None
    beyond = value(call(server, "show_session", session_id="alice", start=99))
    assert beyond["turns"] == [] and beyond["next"] is None
    assert "start" in error(call(server, "show_session", session_id="alice", start=10**30))


def test_a_long_turn_is_cut_unless_it_is_asked_for_whole(engine: Engine, tmp_path: Path) -> None:
    with SQLiteStore(tmp_path) as store:
        with engine.session("long", store=store) as session:
            session.add("user", "word " * 1000)
        server = mcp_server(store)
        [turn] = value(call(server, "show_session", session_id="long"))["turns"]
        assert len(turn["text"]) == 4000 and turn["cut"]
        [turn] = value(call(server, "show_session", session_id="long", whole=True))["turns"]
        assert turn["text"] == "word " * 1000 and not turn["cut"]


def test_stats_count_one_session_or_all(opened: Callable[[bool], Store]) -> None:
    server = mcp_server(opened)
    assert value(call(server, "stats", session_id="alice"))["turns"] == 8
    together = value(call(server, "stats"))
    assert together["sessions"] == 3 and together["turns"] == 12 and together["bytes_disk"] > 0


def test_recall_finds_turns_by_memory_and_by_text(
    engine: Engine, opened: Callable[[bool], Store]
) -> None:
    server = mcp_server(opened, lambda: engine)
    found = value(call(server, "recall", session_id="alice", query="What is Bob's home town?"))
    sources = {each["source"] for each in found}
    assert sources == {"memory", "text"}
    assert any(each["text"] == FACTS[1] for each in found if each["source"] == "memory")
    assert next(each["turn"] for each in found if each["source"] == "text") == 2
    memory = value(call(server, "recall", session_id="alice", query="Bergen?", k=1, text=False))
    assert [each["source"] for each in memory] == ["memory"]
    with SQLiteStore(Path(opened(True).path), read_only=True) as store:  # type: ignore[attr-defined]
        assert store.info("alice").n_turns == 8


def test_recall_is_offered_only_with_a_model(opened: Callable[[bool], Store]) -> None:
    async def names(client: Client) -> list[str]:
        return [tool.name for tool in (await client.list_tools()).tools]

    four = ["list_sessions", "show_session", "stats", "forget_session"]
    assert talk(mcp_server(opened), names) == four
    assert talk(mcp_server(opened, lambda: Engine.nano()), names) == ["recall", *four]


def test_tools_say_what_they_do_and_what_they_change(opened: Callable[[bool], Store]) -> None:
    async def tools(client: Client) -> Any:
        return {tool.name: tool for tool in (await client.list_tools()).tools}

    listed = talk(mcp_server(opened), tools)
    for name, tool in listed.items():
        assert len(tool.description) > 20
        assert tool.annotations.read_only_hint is (name != "forget_session")
        described = tool.input_schema["properties"].values()
        assert all(each.get("description") for each in described)
    assert listed["forget_session"].annotations.destructive_hint is True


def test_a_session_is_forgotten_only_when_that_is_confirmed(engine: Engine, tmp_path: Path) -> None:
    with SQLiteStore(tmp_path) as store, engine.session("a", store=store) as session:
        session.add("user", "canary-7731")
    server = mcp_server(lambda read_only: SQLiteStore(tmp_path, read_only=read_only))
    assert "call again with confirm=true" in error(call(server, "forget_session", session_id="a"))
    assert value(call(server, "stats"))["sessions"] == 1
    done = value(call(server, "forget_session", session_id="a", confirm=True))
    assert done == "Session 'a' with 1 turns is forgotten."
    assert value(call(server, "stats"))["sessions"] == 0
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in left if b"canary-7731" in path.read_bytes()]
    assert "no session 'a'" in error(call(server, "forget_session", session_id="a", confirm=True))


def test_a_store_is_read_beside_its_writer_and_forgets_only_without_one(
    engine: Engine, tmp_path: Path
) -> None:
    with SQLiteStore(tmp_path) as store, engine.session("a", store=store) as session:
        session.add("user", "one")
        server = mcp_server(lambda read_only: SQLiteStore(tmp_path, read_only=read_only))
        assert value(call(server, "stats", session_id="a"))["turns"] == 1
        session.add("assistant", "two")
        assert value(call(server, "stats", session_id="a"))["turns"] == 2
        said = error(call(server, "forget_session", session_id="a", confirm=True))
        assert "is being written by" in said


def test_an_owner_is_served_what_is_theirs_alone(
    engine: Engine, opened: Callable[[bool], Store]
) -> None:
    server = mcp_server(opened, engine, owner="ann")
    assert [each["id"] for each in value(call(server, "list_sessions"))] == ["chat"]
    page = value(call(server, "show_session", session_id="chat"))
    assert page["turns"][0]["text"] == "I am ann."
    for stranger in ("alice", "bob:chat", "ann:chat", "none"):
        for tool in ("show_session", "stats", "forget_session"):
            said = error(call(server, tool, session_id=stranger))
            assert f"there is no session {stranger!r} in this store" in said
        assert "there is no session" in error(
            call(server, "recall", session_id=stranger, query="x")
        )


def test_wrong_input_is_a_tool_error_with_words(
    engine: Engine, opened: Callable[[bool], Store]
) -> None:
    server = mcp_server(opened, engine)

    async def all_wrong(client: Client) -> list[CallToolResult]:
        calls: list[tuple[str, dict[str, Any]]] = [
            ("show_session", {"session_id": "nobody"}),
            ("show_session", {"session_id": "alice", "limit": -1}),
            ("show_session", {"session_id": 7}),
            ("show_session", {}),
            ("list_sessions", {"limit": 10**9}),
            ("recall", {"session_id": "alice", "query": ""}),
            ("recall", {"session_id": "alice", "query": "x", "k": 0}),
            ("recall", {"session_id": "../alice", "query": "x"}),
            ("forget_session", {"session_id": "alice", "confirm": "perhaps"}),
        ]
        results = [await client.call_tool(name, arguments) for name, arguments in calls]
        assert value(await client.call_tool("stats", {}))["sessions"] == 3
        return results

    for result in talk(server, all_wrong):
        said = error(result)
        assert len(said) > 20 and "Traceback" not in said


def test_another_model_than_the_sessions_is_an_error_that_says_so(
    opened: Callable[[bool], Store],
) -> None:
    server = mcp_server(opened, scripted_engine([]))
    assert "alice" in error(call(server, "recall", session_id="alice", query="x"))


def test_a_client_of_an_earlier_protocol_is_served_too(opened: Callable[[bool], Store]) -> None:
    async def main() -> CallToolResult:
        async with Client(mcp_server(opened), mode="legacy") as client:
            assert len((await client.list_tools()).tools) == 4
            return await client.call_tool("stats", {"session_id": "alice"})

    assert value(asyncio.run(main()))["turns"] == 8


def test_without_the_package_the_server_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    monkeypatch.setitem(sys.modules, "mcp.server", None)
    with pytest.raises(ImportError, match=r"pip install 'longmem\[mcp\]'"):
        mcp_server(lambda read_only: SQLiteStore(folder, read_only=read_only))
    ran = Command(monkeypatch, capsys)("mcp", "--store", str(folder))
    assert ran.code == 1 and "pip install" in ran.err


def test_calls_at_the_same_time_are_served_one_after_another(
    engine: Engine, opened: Callable[[bool], Store]
) -> None:
    async def at_once(client: Client) -> list[CallToolResult]:
        recall = {"session_id": "alice", "query": "What is Bob's home town?"}
        return await asyncio.gather(
            *(client.call_tool("recall", recall) for _ in range(4)),
            *(client.call_tool("stats", {}) for _ in range(4)),
        )

    results = talk(mcp_server(opened, engine), at_once)
    assert len({str(value(result)) for result in results[:4]}) == 1
    assert len({str(value(result)) for result in results[4:]}) == 1


def test_the_command_serves_a_store_over_stdio(folder: Path) -> None:
    async def session(client: Client) -> None:
        listed = value(await client.call_tool("list_sessions", {"limit": 10}))
        assert "alice" in [each["id"] for each in listed]
        page = value(await client.call_tool("show_session", {"session_id": "alice"}))
        assert page["turns"][0]["text"] == FACTS[0]
        refused = error(await client.call_tool("recall", {"session_id": "alice", "query": "Bob?"}))
        assert "alice" in refused  # it was written under other memory settings
        found = await client.call_tool("recall", {"session_id": "gone", "query": "Bob?"})
        assert "there is no session 'gone'" in error(found)
        assert value(await client.call_tool("stats", {}))["sessions"] == 3

    talk(command("--store", str(folder)), session)


def test_the_command_refuses_a_folder_that_is_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = Command(monkeypatch, capsys)("mcp", "--store", str(tmp_path / "none"))
    assert ran.code == 1 and ran.out == "" and "there is no longmem store" in ran.err


def command(*arguments: str) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=["-P", "-m", "longmem.cli", "mcp", *arguments],
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )


def test_the_example_runs(tmp_path: Path) -> None:
    printed = run("mcp_recall.py", "chats", folder=tmp_path)
    assert "Bergen" in printed and "memory" in printed
