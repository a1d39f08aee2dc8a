"""The PydanticAI model: what an agent sends is read once, tools and structured output work, streams
and edited histories leave sessions whole."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import dialogues
import frameworks
import pytest
from dialogues import echo_engine
from frameworks import OPENING, Answer, Pick, call, uninstall
from pydantic_ai import Agent, ModelRetry, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.direct import model_request_sync
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import (
    BinaryContent,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    ModelResponsePart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.toolsets import FunctionToolset
from pydantic_ai.usage import RunUsage
from scripted import Scripted
from test_examples import run

from longmem.adapters.pydantic_ai import LongMemModel
from longmem.dialogue import Dialogue
from longmem.errors import InputError
from longmem.stores import InMemoryStore, SQLiteStore

engine, dialogue = frameworks.engine, dialogues.in_memory


def weather_agent(model: LongMemModel, **options: object) -> Agent[None, object]:
    agent: Agent[None, object] = Agent(model, **options)  # type: ignore[arg-type]

    @agent.tool_plain
    def weather(city: str) -> str:
        """The weather in a city."""
        if city == "Atlantis":
            raise ModelRetry("there is no such city")
        return f"12 degrees in {city}"

    return agent


def read(usage: RunUsage) -> int:
    """Tokens that were not in memory."""
    return usage.input_tokens - usage.cache_read_tokens


def roles(dialogue: Dialogue, session: str) -> list[str]:
    return [turn.role for turn in dialogue.turns(None, session)]


def test_a_history_given_again_is_not_read_again(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("Hello!", "Yes.", "No.")
    agent = Agent(LongMemModel(dialogue))
    first = agent.run_sync("Hi there, " * 20)
    second = agent.run_sync("Really?", message_history=first.all_messages())
    third = agent.run_sync("Really?", message_history=second.all_messages())
    assert [first.output, second.output, third.output] == ["Hello!", "Yes.", "No."]
    assert read(first.usage) > 80 and first.usage.cache_read_tokens == 0
    assert read(second.usage) == read(third.usage) < 16
    [session] = dialogue.sessions(None)
    assert session.id == first.all_messages()[0].conversation_id
    assert session.n_turns == 6
    assert third.usage.cache_read_tokens + read(third.usage) + 3 < session.n_tokens


def test_five_turns_are_read_once_each(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(*(f"reply {i}" for i in range(5)))
    agent, history = Agent(LongMemModel(dialogue)), None
    for i in range(5):
        before = 0 if i == 0 else dialogue.info(None, "s").n_tokens
        result = agent.run_sync(
            f"This is what I say in turn {i}.", message_history=history, conversation_id="s"
        )
        history = result.all_messages()
        assert result.usage.cache_read_tokens == before
        [told, reply] = dialogue.turns(None, "s")[-2:]
        assert read(result.usage) == told.tokens + OPENING
        assert reply.tokens >= OPENING + result.usage.output_tokens


def test_a_conversation_id_alone_goes_on_with_the_session(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("Hello!", call("weather", '{"city": "Bern"}'), "12.")
    agent = weather_agent(LongMemModel(dialogue))
    agent.run_sync("Hi", conversation_id="alice")
    result = agent.run_sync("How warm is it in Bern?", conversation_id="alice")
    assert result.output == "12."
    assert roles(dialogue, "alice")[1:] == ["user", "assistant"] * 2 + ["tool", "assistant"]
    assert [info.id for info in dialogue.sessions(None)] == ["alice"]


def test_each_step_of_a_tool_loop_reads_what_is_new(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(call("weather", '{"city": "Zürich"}'), "It is 12 degrees in Zürich.")
    result = weather_agent(LongMemModel(dialogue)).run_sync("How warm?", conversation_id="a")
    assert result.output == "It is 12 degrees in Zürich."
    steps = [m.usage for m in result.all_messages() if isinstance(m, ModelResponse)]
    assert [step.input_tokens - step.cache_read_tokens for step in steps][1] < 40
    assert steps[1].cache_read_tokens > steps[0].input_tokens
    turns = dialogue.turns(None, "a")
    assert turns[-2].text == "12 degrees in Zürich"
    called = turns[-3].extra["tool_calls"][0]
    assert turns[-2].extra["tool_call_id"] == called["id"]


def test_a_tool_that_asks_for_another_try_gets_it(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(
        call("weather", '{"city": "Atlantis"}'), call("weather", '{"city": "Bern"}'), "12 degrees."
    )
    agent = weather_agent(LongMemModel(dialogue))
    result = agent.run_sync("How warm?", conversation_id="a")
    assert result.output == "12 degrees."
    told = [turn.text for turn in dialogue.turns(None, "a") if turn.role == "tool"]
    assert "there is no such city" in told[0] and told[1] == "12 degrees in Bern"
    engine.say("Bye.")
    again = agent.run_sync("Thanks", message_history=result.all_messages())
    assert again.usage.input_tokens - again.usage.cache_read_tokens < 16


def test_structured_output_comes_from_an_output_tool(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(call("final_result", '{"city": "Bern", "degrees": 12}'), "Fine.")
    agent = Agent(LongMemModel(dialogue), output_type=ToolOutput(Answer))
    result = agent.run_sync("How warm?", conversation_id="a")
    assert result.output == Answer(city="Bern", degrees=12)
    assert roles(dialogue, "a") == ["system", "user", "assistant"]


def test_an_output_tool_has_to_be_called(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("I would rather say this in plain words, and at some length, if I may do so.")
    agent = Agent(LongMemModel(dialogue), output_type=ToolOutput(Pick))
    result = agent.run_sync("How warm?", model_settings={"max_tokens": 120})
    assert isinstance(result.output, Pick)


@pytest.mark.parametrize("mode", [NativeOutput, PromptedOutput])
def test_structured_output_comes_as_constrained_text(
    engine: Scripted, dialogue: Dialogue, mode: type
) -> None:
    engine.say('{"city": "Bern", "degrees": 12}')
    agent = Agent(LongMemModel(dialogue), output_type=mode(Answer))
    assert agent.run_sync("How warm?").output == Answer(city="Bern", degrees=12)


def test_a_schema_holds_a_model_that_would_say_something_else(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("No JSON at all, but words upon words.")
    agent = Agent(LongMemModel(dialogue), output_type=NativeOutput(Pick))
    result = agent.run_sync("How warm?", model_settings={"max_tokens": 120})
    assert isinstance(result.output, Pick)


def test_tools_and_a_schema_work_together(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(call("weather", '{"city": "Bern"}'), '{"city": "Bern", "degrees": 12}')
    agent = weather_agent(LongMemModel(dialogue), output_type=NativeOutput(Answer))
    result = agent.run_sync("How warm is it in Bern?", conversation_id="a")
    assert result.output == Answer(city="Bern", degrees=12)


def test_a_streamed_run_gives_text_in_pieces_and_is_stored_once(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("One two three four five six.", "Seven.")
    agent = Agent(LongMemModel(dialogue))

    async def stream() -> tuple[list[str], object]:
        async with agent.run_stream("Count", conversation_id="a") as result:
            pieces = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
        return pieces, result

    pieces, result = asyncio.run(stream())
    assert len(pieces) > 2 and "".join(pieces) == "One two three four five six."
    assert result.usage.output_tokens > 5  # type: ignore[attr-defined]
    history = result.all_messages()  # type: ignore[attr-defined]
    assert read(agent.run_sync("On", message_history=history).usage) < 16
    assert roles(dialogue, "a") == ["user", "assistant"] * 2


def test_a_streamed_run_calls_tools(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("Let me see. " + call("weather", '{"city": "Bern"}'), "12 degrees.")
    agent = weather_agent(LongMemModel(dialogue))

    async def stream() -> list[str]:
        events = []
        async with agent.iter("How warm?", conversation_id="a") as steps:
            async for node in steps:
                if agent.is_model_request_node(node):
                    async with node.stream(steps.ctx) as pieces:
                        events += [type(event).__name__ async for event in pieces]
        assert steps.result is not None and steps.result.output == "12 degrees."
        return events

    events = asyncio.run(stream())
    assert "PartDeltaEvent" in events and "FinalResultEvent" in events
    assert roles(dialogue, "a")[-4:] == ["user", "assistant", "tool", "assistant"]


def test_a_stream_that_is_left_stores_nothing(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("Hello!", "One two three four five six seven eight nine.", "Bye.")
    agent = Agent(LongMemModel(dialogue))
    first = agent.run_sync("Hi", conversation_id="a")

    async def leave() -> None:
        async with agent.run_stream("Count", message_history=first.all_messages()) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                break

    asyncio.run(leave())
    assert roles(dialogue, "a") == ["user", "assistant"]
    assert agent.run_sync("Bye", message_history=first.all_messages()).output == "Bye."


def test_a_stream_that_is_cancelled_stores_nothing_and_the_next_run_goes_on(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("One two three four five six seven eight nine.", "Bye.")
    agent = Agent(LongMemModel(dialogue))

    async def cancel() -> list[ModelMessage]:
        async with agent.run_stream("Count", conversation_id="a") as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                await result.cancel()
        return result.all_messages()

    history = asyncio.run(cancel())
    assert history[-1].state == "interrupted"  # type: ignore[union-attr]
    assert dialogue.sessions(None) == []
    assert agent.run_sync("Bye", message_history=history).output == "Bye."
    assert roles(dialogue, "a") == ["user", "assistant"] * 2


def test_a_trimmed_history_goes_on_where_it_stood(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two", "three")
    agent = Agent(LongMemModel(dialogue))
    first = agent.run_sync("a", conversation_id="s")
    second = agent.run_sync("b", message_history=first.all_messages())
    third = agent.run_sync("c", message_history=second.all_messages()[2:])
    assert read(third.usage) < 12
    assert [turn.text for turn in dialogue.turns(None, "s")] == [
        "a",
        "one",
        "b",
        "two",
        "c",
        "three",
    ]


def test_thoughts_are_parts_and_are_not_read_again(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("<think>Hm.</think>One.", "<think>Hm.</think>Two.", "Three.")
    agent = Agent(LongMemModel(dialogue))
    first = agent.run_sync("a", conversation_id="s")
    assert [type(part) for part in first.all_messages()[-1].parts] == [ThinkingPart, TextPart]

    async def stream() -> list[ModelMessage]:
        async with agent.run_stream("b", message_history=first.all_messages()) as result:
            assert await result.get_output() == "Two."
        return result.all_messages()

    history = asyncio.run(stream())
    assert {type(part) for part in history[-1].parts} == {ThinkingPart, TextPart}
    assert read(agent.run_sync("c", message_history=history).usage) < 12
    assert [info.n_turns for info in dialogue.sessions(None)] == [6]


def test_without_the_package_the_adapter_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uninstall(monkeypatch, "pydantic_ai", "longmem.adapters.pydantic_ai")
    with pytest.raises(ImportError, match=r"pip install 'longmem\[pydantic-ai\]'"):
        import_module("longmem.adapters.pydantic_ai")


def test_many_runs_at_once_keep_to_their_sessions() -> None:
    with InMemoryStore() as store, Dialogue(echo_engine(), store) as dialogue:
        agent = Agent(LongMemModel(dialogue))

        async def talk(name: str) -> list[str]:
            said, history = [], None
            for i in range(3):
                result = await agent.run(
                    f"{name} {i}", message_history=history, conversation_id=name
                )
                history = result.all_messages()
                said.append(result.output)
            return said

        async def main() -> list[list[str]]:
            return await asyncio.gather(*(talk(f"user{n}") for n in range(6)))

        for n, said in enumerate(asyncio.run(main())):
            assert said == [f"re user{n} {i}" for i in range(3)]
            assert len(roles(dialogue, f"user{n}")) == 6


def test_a_choice_of_tools_is_kept_to(engine: Scripted, dialogue: Dialogue) -> None:
    def pick(city: Literal["Bern", "Oslo"]) -> str:
        """Pick a city."""
        return city

    def other() -> str:
        """Do something else."""
        return "done"

    def third() -> str:
        """Do a third thing."""
        return "done"

    toolset = FunctionToolset([pick, other, third])
    tools = [tool.tool_def for tool in toolset.tools.values()]

    def choose(choice: Any) -> list[ModelResponsePart]:
        reply = model_request_sync(
            LongMemModel(dialogue),
            [ModelRequest([UserPromptPart("Where?")])],
            model_settings={"tool_choice": choice, "max_tokens": 120},
            model_request_parameters=ModelRequestParameters(function_tools=tools),
        )
        return list(reply.parts)

    engine.say("I would rather not call anything at all.", "Nothing it is.")
    [made] = choose(["pick"])
    assert isinstance(made, ToolCallPart) and made.tool_name == "pick"
    assert [part.part_kind for part in choose("none")] == ["text"]
    with pytest.raises(UserError, match="all of them or one"):
        choose(["pick", "other"])


def test_an_edited_history_goes_on_in_one_fork(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two", "other", "further")
    agent = Agent(LongMemModel(dialogue))
    first = agent.run_sync("a", conversation_id="s")
    second = agent.run_sync("b", message_history=first.all_messages())
    edited = agent.run_sync("B", message_history=first.all_messages())
    further = agent.run_sync("c", message_history=edited.all_messages())
    kept, fork = sorted(info.id for info in dialogue.sessions(None))
    assert kept == "s" and fork.startswith("s~")
    assert [turn.text for turn in dialogue.turns(None, "s")] == ["a", "one", "b", "two"]
    assert [turn.text for turn in dialogue.turns(None, fork)] == [
        *("a", "one", "B", "other", "c", "further")
    ]
    assert read(further.usage) < 12
    engine.say("three")
    assert read(agent.run_sync("c", message_history=second.all_messages()).usage) < 12
    assert dialogue.info(None, "s").n_turns == 6


def test_a_session_goes_on_after_a_restart(engine: Scripted, tmp_path: Path) -> None:
    engine.say(call("weather", '{"city": "Bern"}'), "12 degrees.", "You asked for Bern.")
    with SQLiteStore(tmp_path) as store, Dialogue(engine, store) as dialogue:
        first = weather_agent(LongMemModel(dialogue), instructions="Be brief.").run_sync("Warm?")
        saved = first.all_messages_json()
    history = ModelMessagesTypeAdapter.validate_json(saved)
    with SQLiteStore(tmp_path) as store, Dialogue(engine, store) as dialogue:
        agent = weather_agent(LongMemModel(dialogue), instructions="Be brief.")
        second = agent.run_sync("Where?", message_history=history)
        assert second.output == "You asked for Bern."
        assert read(second.usage) < 16
        assert len(dialogue.sessions(None)) == 1


def test_owners_do_not_meet(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")
    Agent(LongMemModel(dialogue, owner="ann")).run_sync("a", conversation_id="s")
    result = Agent(LongMemModel(dialogue, owner="bob")).run_sync("a", conversation_id="s")
    assert result.usage.cache_read_tokens == 0
    assert [info.id for info in dialogue.sessions("ann")] == ["s"]
    assert dialogue.info("bob", "s").n_turns == 2
    assert dialogue.sessions(None) == []


def test_store_false_keeps_nothing(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")
    agent = Agent(LongMemModel(dialogue, store=False))
    first = agent.run_sync("a " * 30, conversation_id="s")
    second = agent.run_sync("b", message_history=first.all_messages())
    assert second.usage.cache_read_tokens == 0 and read(second.usage) > read(first.usage)
    assert dialogue.sessions(None) == []


def test_another_system_prompt_is_refused_or_left_out(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")
    first = Agent(LongMemModel(dialogue), system_prompt="Be brief.").run_sync("a")
    history = [ModelRequest([UserPromptPart("a")]), *first.all_messages()[1:]]
    with pytest.raises(InputError, match="system prompt"):
        Agent(LongMemModel(dialogue), instructions="Be long.").run_sync(
            "b", message_history=history
        )
    kept = LongMemModel(dialogue, on_system="keep")
    result = Agent(kept, instructions="Be long.").run_sync("b", message_history=history)
    assert result.output == "two" and read(result.usage) < 12


def test_what_is_not_text_is_refused(dialogue: Dialogue) -> None:
    agent = Agent(LongMemModel(dialogue))
    picture = BinaryContent(b"\x89PNG", media_type="image/png")
    with pytest.raises(UserError, match="reads text alone, and a user prompt holds"):
        agent.run_sync(["What is this?", picture])
    assert dialogue.sessions(None) == []


def test_sampling_settings_reach_the_model(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("One two three four five six seven eight.", "a STOP b")
    agent = Agent(LongMemModel(dialogue))
    cut = agent.run_sync("Count", model_settings={"max_tokens": 4, "top_p": 0.9, "seed": 1})
    assert cut.usage.output_tokens == 4
    response = cut.all_messages()[-1]
    assert isinstance(response, ModelResponse) and response.finish_reason == "length"
    greedy = ModelSettings(stop_sequences=["STOP"], temperature=0.0, top_p=0.5, top_k=3)
    stopped = agent.run_sync("x", model_settings=greedy)
    assert str(stopped.output).strip() == "a"


def test_a_response_of_another_model_is_read_as_it_is(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("Fine.")
    history = [
        ModelRequest([UserPromptPart(["Warm", "in Bern?"])]),
        ModelResponse([TextPart("Wait."), ToolCallPart("weather", '{"city": "Bern', "call_1")]),
        ModelRequest([UserPromptPart("Never mind.")]),
    ]
    model = LongMemModel(dialogue)
    reply = asyncio.run(model.request(history, None, ModelRequestParameters()))
    assert [part.content for part in reply.parts if isinstance(part, TextPart)] == ["Fine."]
    assert dialogue.sessions(None) == []  # no conversation was named


def test_the_example_runs(tmp_path: Path) -> None:
    printed = run("pydantic_ai_agent.py", "chats", folder=tmp_path)
    assert "new tokens read" in printed
