"""The OpenAI Agents SDK over HTTP: responses by id, conversations, and its session of items."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import agents
import pytest
from agents import Agent, OpenAIConversationsSession, OpenAIResponsesModel, Runner, function_tool
from live_server import LiveServer

CALL = "<tool_call>\n" + json.dumps({"name": "weather", "arguments": {"place": "Oslo"}})
CALL += "\n</tool_call>"


@function_tool
def weather(place: str) -> str:
    """The weather of a place."""
    return f"dry in {place}"


@pytest.fixture(scope="module", autouse=True)
def no_tracing() -> None:
    agents.set_tracing_disabled(True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("agents")) as running:
        yield running


def agent(client: Any, instructions: str = "Be brief.", **options: Any) -> Agent[Any]:
    model = OpenAIResponsesModel(model="nano", openai_client=client)
    return Agent("helper", instructions=instructions, model=model, tools=[weather], **options)


def roles(server: LiveServer, session: str) -> list[str]:
    return [role for role, _ in server.turns(session)]


def test_a_tool_loop_continues_responses(server: LiveServer) -> None:
    async def talk() -> str:
        server.engine.say(CALL, "Dry.", "Bye.")
        async with server.async_openai() as client:
            first = await Runner.run(agent(client), "Oslo?", auto_previous_response_id=True)
            assert first.final_output == "Dry."
            second = await Runner.run(
                agent(client), "Thanks", previous_response_id=first.last_response_id
            )
            assert second.final_output == "Bye."
            return first.raw_responses[0].response_id or ""

    session = asyncio.run(talk())
    turns = ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert roles(server, session) == ["system", *turns]


def test_a_tool_loop_appends_to_a_conversation(server: LiveServer) -> None:
    async def talk() -> tuple[str, list[int]]:
        server.engine.say(CALL, "Dry.", "Bye.")
        async with server.async_openai() as client:
            made = await client.conversations.create()
            read = []
            for text in ("Oslo?", "Thanks"):
                run = await Runner.run(agent(client), text, conversation_id=made.id)
                for response in run.raw_responses:
                    usage = response.usage
                    read.append(usage.input_tokens - usage.input_tokens_details.cached_tokens)
            return made.id, read

    conversation, read = asyncio.run(talk())
    turns = ["user", "assistant", "tool", "assistant", "user", "assistant"]
    assert roles(server, conversation) == ["system", *turns]
    assert max(read[1:]) < read[0]


def test_a_stream_runs_through(server: LiveServer) -> None:
    async def talk() -> tuple[str, list[str]]:
        server.engine.say(CALL, "It is dry there.")
        async with server.async_openai() as client:
            run = Runner.run_streamed(agent(client), "Oslo?", auto_previous_response_id=True)
            kinds = [event.type async for event in run.stream_events()]
            return run.final_output, kinds

    output, kinds = asyncio.run(talk())
    assert output == "It is dry there."
    assert {"raw_response_event", "run_item_stream_event"} <= set(kinds)


def test_its_conversations_session_keeps_gives_and_pops_items(server: LiveServer) -> None:
    async def talk() -> None:
        server.engine.say(CALL, "Dry.", "Bye.", "Bye again.")
        async with server.async_openai() as client:
            session = OpenAIConversationsSession(openai_client=client)
            await Runner.run(agent(client), "Oslo?", session=session)
            await Runner.run(agent(client), "Thanks", session=session)
            kinds = [item["type"] for item in await session.get_items()]
            assert kinds == [
                "message",
                "function_call",
                "function_call_output",
                "message",
                "message",
                "message",
            ]
            popped = await session.pop_item()
            assert popped is not None and popped["content"][0]["text"] == "Bye."
            assert len(await session.get_items(limit=2)) == 2
            await session.pop_item()
            await Runner.run(agent(client), "Thanks again", session=session)
            assert len(await session.get_items()) == 6
            await session.add_items([{"role": "user", "content": f"{i}"} for i in range(25)])
            assert len(await session.get_items()) == 31
            await session.clear_session()
            assert await session.get_items() == []

    asyncio.run(talk())


def test_a_handoff_answers_under_the_other_agents_instructions(server: LiveServer) -> None:
    async def talk() -> str:
        async with server.async_openai() as client:
            other = agent(client, "You are the other one.", handoff_description="Knows more.")
            first = agent(client, handoffs=[other])
            name = agents.handoff(other).tool_name
            call = json.dumps({"name": name, "arguments": {}})
            server.engine.say(f"<tool_call>\n{call}\n</tool_call>", "Here I am.")
            run = await Runner.run(first, "Help", auto_previous_response_id=True)
            assert run.final_output == "Here I am."
            return run.last_response_id or ""

    session = asyncio.run(talk())
    turns = server.turns(session)
    assert turns[0][1].startswith("You are the other one.")
    assert [role for role, _ in turns] == ["system", "user", "assistant", "tool", "assistant"]
