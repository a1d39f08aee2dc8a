"""The Agents SDK's model: what the runner sends is read once, whichever way it names the session."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import dialogues
import frameworks
import pytest
from agents import (
    Agent,
    ModelSettings,
    ModelTracing,
    RunConfig,
    Runner,
    RunResult,
    SQLiteSession,
    WebSearchTool,
    function_tool,
    handoff,
    set_trace_processors,
    set_tracing_disabled,
)
from agents.exceptions import UserError
from dialogues import echo_engine
from frameworks import OPENING, Answer, Pick, call, uninstall
from scripted import Scripted
from test_examples import run

from longmem.adapters.openai_agents import LongMemModel
from longmem.dialogue import Dialogue
from longmem.errors import ConfigError, InputError
from longmem.stores import InMemoryStore, SQLiteStore

set_tracing_disabled(True)


@function_tool
def picked(city: Literal["Bern", "Oslo"]) -> str:
    """Pick a city."""
    return f"picked {city}"


@function_tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"12 degrees in {city}"


@function_tool(needs_approval=True)
def careful() -> str:
    """Delete it."""
    return "deleted"


CAREFUL = call("careful", "{}")
WEATHER = call("weather", '{"city": "Bern"}')

engine, dialogue = frameworks.engine, dialogues.in_memory


def agent_of(model: LongMemModel, **options: Any) -> Agent[None]:
    return Agent("helper", model=model, **({"instructions": "Be brief."} | options))


def ask(agent: Agent[None], said: Any, **options: Any) -> RunResult:
    return Runner.run_sync(agent, said, **options)


def read(result: RunResult) -> list[int]:
    """Tokens of each model call that were not in memory."""
    usages = [response.usage for response in result.raw_responses]
    return [u.input_tokens - u.input_tokens_details.cached_tokens for u in usages]


def said(dialogue: Dialogue, session: str, owner: str | None = None) -> list[str]:
    """What was said in a session, its system prompt apart."""
    return [t.text for t in dialogue.turns(owner, session) if t.role != "system"]


def test_a_conversation_id_is_sent_new_items_alone_also_in_the_tool_loop(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say(WEATHER, "It is 12 degrees.", "You are welcome.")
    agent = agent_of(LongMemModel(dialogue), tools=[weather])
    first = ask(agent, "How warm is it in Bern?", conversation_id="alice")
    second = ask(agent, "Thanks!", conversation_id="alice")
    assert first.final_output == "It is 12 degrees."
    assert second.final_output == "You are welcome."
    assert read(first)[1] < 24 and read(second)[0] < 16 < 60 < read(first)[0]
    roles = [turn.role for turn in dialogue.turns(None, "alice")]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    usage = first.context_wrapper.usage
    assert usage.requests == 2
    assert usage.input_tokens_details.cached_tokens > 60
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


def test_a_whole_list_is_compared_with_the_session_of_the_model(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say(WEATHER, "12 degrees.", "Welcome.", "Bye.")
    agent = agent_of(LongMemModel(dialogue, session="alice"), tools=[weather])
    first = ask(agent, "How warm is it in Bern?")
    second = ask(agent, [*first.to_input_list(), {"role": "user", "content": "Thanks!"}])
    assert max(read(second)) < 16
    more = [{"type": "input_text", "text": "Bye!"}]
    third = ask(agent, [*second.to_input_list(), {"role": "user", "content": more}])
    assert third.final_output == "Bye." and max(read(third)) < 16
    assert said(dialogue, "alice")[-2:] == ["Bye!", "Bye."]
    assert len(dialogue.sessions(None)) == 1


@pytest.mark.parametrize("sent", ["new items", "all items"])
def test_five_turns_are_read_once_each(engine: Scripted, dialogue: Dialogue, sent: str) -> None:
    engine.say(*(f"reply {i}" for i in range(5)))
    agent, items = agent_of(LongMemModel(dialogue, session="s")), []
    for i in range(5):
        before = 0 if i == 0 else dialogue.info(None, "s").n_tokens
        said_now = [{"role": "user", "content": f"This is what I say in turn {i}."}]
        if sent == "new items":
            result = ask(agent, said_now, conversation_id="s")
        else:
            result = ask(agent, items + said_now)
        items = result.to_input_list()
        usage = result.context_wrapper.usage
        assert usage.input_tokens_details.cached_tokens == before  # all history, and nothing of it
        *told, reply = dialogue.turns(None, "s")[-2 if i else -3 :]  # was read again
        assert read(result)[0] == sum(turn.tokens for turn in told) + OPENING
        assert reply.tokens >= OPENING + usage.output_tokens


def test_an_edited_list_goes_on_in_one_fork(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two", "other", "further")
    agent = agent_of(LongMemModel(dialogue, session="s"))
    first = ask(agent, "a").to_input_list()
    ask(agent, [*first, {"role": "user", "content": "b"}])
    edited = ask(agent, [*first, {"role": "user", "content": "B"}]).to_input_list()
    further = ask(agent, [*edited, {"role": "user", "content": "c"}])
    kept, fork = sorted(info.id for info in dialogue.sessions(None))
    assert said(dialogue, kept) == ["a", "one", "b", "two"]
    assert said(dialogue, fork) == ["a", "one", "B", "other", "c", "further"]
    assert read(further)[0] < 12


def test_a_response_id_goes_on_behind_that_response(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two", "other")
    agent = agent_of(LongMemModel(dialogue, session="s"))
    first = ask(agent, "a")
    second = ask(agent, "b", previous_response_id=first.last_response_id)
    assert said(dialogue, "s") == ["a", "one", "b", "two"]
    other = ask(agent, "B", previous_response_id=first.last_response_id)
    assert read(second)[0] < 12 and read(other)[0] < 12
    [fork] = [info.id for info in dialogue.sessions(None) if info.id != "s"]
    assert said(dialogue, fork) == ["a", "one", "B", "other"]
    with pytest.raises(UserError, match="no response 'resp_unknown'"):
        ask(agent, "b", previous_response_id="resp_unknown")
    with pytest.raises(UserError, match="give one of them"):
        ask(agent, "b", previous_response_id=first.last_response_id, conversation_id="s")


def test_store_true_begins_a_session_that_its_response_names(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say(WEATHER, "12 degrees.", "Welcome.")
    storing = agent_of(
        LongMemModel(dialogue), tools=[weather], model_settings=ModelSettings(store=True)
    )
    first = ask(storing, "How warm is it?", auto_previous_response_id=True)
    assert read(first)[1] < 24
    second = ask(storing, "Thanks!", previous_response_id=first.last_response_id)
    assert read(second)[0] < 16
    assert [info.n_turns for info in dialogue.sessions(None)] == [7]


def test_without_a_session_nothing_is_stored(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(WEATHER, "12 degrees.", "one", WEATHER)
    agent = agent_of(LongMemModel(dialogue), tools=[weather])
    result = ask(agent, "How warm is it?")
    assert result.final_output == "12 degrees." and result.last_response_id is None
    assert read(result)[1] > read(result)[0]
    not_stored = agent_of(
        LongMemModel(dialogue, session="s"), model_settings=ModelSettings(store=False)
    )
    ask(not_stored, "a")
    assert dialogue.sessions(None) == []
    with pytest.raises(UserError, match=r"set ModelSettings\(store=True\)"):
        ask(agent, "How warm is it?", auto_previous_response_id=True)


def test_another_session_class_names_a_session_too(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")
    agent = agent_of(LongMemModel(dialogue))
    session = SQLiteSession("alice")
    ask(agent, "a", session=session)
    second = ask(agent, "b", session=session)
    assert read(second)[0] < 12
    [info] = dialogue.sessions(None)
    assert said(dialogue, info.id) == ["a", "one", "b", "two"]
    session.close()


def test_a_session_goes_on_after_a_restart(engine: Scripted, tmp_path: Path) -> None:
    engine.say(WEATHER, "12 degrees.", "You asked for Bern.")
    with SQLiteStore(tmp_path) as store, Dialogue(engine, store) as dialogue:
        ask(agent_of(LongMemModel(dialogue), tools=[weather]), "Warm?", conversation_id="alice")
    with SQLiteStore(tmp_path) as store, Dialogue(engine, store) as dialogue:
        agent = agent_of(LongMemModel(dialogue), tools=[weather])
        result = ask(agent, "Where?", conversation_id="alice")
        assert result.final_output == "You asked for Bern." and read(result)[0] < 16


def test_owners_do_not_meet(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")
    ask(agent_of(LongMemModel(dialogue, owner="ann")), "a", conversation_id="s")
    bobs = agent_of(LongMemModel(dialogue, owner="bob"))
    first = ask(bobs, "a", conversation_id="s")
    assert first.context_wrapper.usage.input_tokens_details.cached_tokens == 0
    assert said(dialogue, "s", "bob") == ["a", "two"]
    anns = ask_id(dialogue, "ann")
    with pytest.raises(UserError, match="no response"):
        ask(bobs, "b", previous_response_id=anns)


def ask_id(dialogue: Dialogue, owner: str) -> str:
    """The response id of the owner's first reply."""
    [*_, turn] = dialogue.turns(owner, "s")
    return "resp_" + turn.extra["id"].removeprefix("msg_")


def test_output_of_a_type_is_held_to_its_schema(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("No JSON at all, but words upon words.")
    settings = ModelSettings(max_tokens=120)
    agent = agent_of(LongMemModel(dialogue), output_type=Pick, model_settings=settings)
    assert isinstance(ask(agent, "Where?").final_output, Pick)


def test_tools_and_output_of_a_type_work_together(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(WEATHER, '{"city": "Bern", "degrees": 12}')
    agent = agent_of(LongMemModel(dialogue), tools=[weather], output_type=Answer)
    result = ask(agent, "How warm?", conversation_id="a")
    assert result.final_output == Answer(city="Bern", degrees=12)


def test_a_required_tool_is_called(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("I would rather talk, and for quite a while, if that is all right.", "Done.")
    settings = ModelSettings(tool_choice="picked", max_tokens=120)
    agent = agent_of(LongMemModel(dialogue), tools=[weather, picked], model_settings=settings)
    result = ask(agent, "Where?", conversation_id="a")
    assert result.final_output == "Done."
    assert [item.type for item in result.new_items][:2] == [
        "tool_call_item",
        "tool_call_output_item",
    ]


def test_a_handoff_is_a_tool_and_keeps_the_first_agents_instructions(
    engine: Scripted, dialogue: Dialogue
) -> None:
    over = call("transfer_to_poet", "{}")
    engine.say(over, "Roses are red.", over)
    model = LongMemModel(dialogue, on_system="keep")
    poet = Agent("poet", instructions="Rhyme.", model=model)
    agent = agent_of(model, handoffs=[handoff(poet)])
    result = ask(agent, "A poem!", conversation_id="a")
    assert result.last_agent is poet and result.final_output == "Roses are red."
    assert dialogue.turns(None, "a")[0].text.startswith("Be brief.")
    strict = LongMemModel(dialogue)
    poet, agent = poet.clone(model=strict), agent.clone(model=strict)
    agent = agent.clone(handoffs=[handoff(poet)])
    with pytest.raises(InputError, match="system prompt"):
        ask(agent, "A poem!", conversation_id="b")


def test_what_only_openai_can_run_is_refused(engine: Scripted, dialogue: Dialogue) -> None:
    model = LongMemModel(dialogue)
    with pytest.raises(UserError, match=r"'web_search' .*longmem has functions only"):
        ask(agent_of(model, tools=[WebSearchTool()]), "a")
    picture = [{"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"}]
    with pytest.raises(UserError, match="'input_image'"):
        ask(agent_of(model), [{"role": "user", "content": picture}])
    with pytest.raises(UserError, match="'item_reference'"):
        ask(agent_of(model), [{"type": "item_reference", "id": "x"}])
    with pytest.raises(UserError, match="no stored prompts"):
        ask(Agent("helper", prompt={"id": "pmpt_1"}, model=model), "a")


def test_settings_reach_the_model(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("One two three four five six.", "a STOP b")
    model = LongMemModel(dialogue)
    settings = ModelSettings(max_tokens=3, top_p=0.5, verbosity="low", extra_args={"seed": 1})
    cut = ask(agent_of(model, model_settings=settings), "Count")
    assert cut.context_wrapper.usage.output_tokens == 3
    assert cut.raw_responses[0].output[0].status == "incomplete"  # type: ignore[union-attr]
    stop = ModelSettings(extra_args={"stop": ["STOP"]})
    assert ask(agent_of(model, model_settings=stop), "x").final_output.strip() == "a"
    with pytest.raises(ConfigError, match="no sampling option 'speed'"):
        ask(agent_of(model, model_settings=ModelSettings(extra_args={"speed": 1})), "x")


def test_a_stream_gives_every_event_and_is_stored_once(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("Let me see. " + WEATHER, "It is 12 degrees.", "Welcome.")
    agent = agent_of(LongMemModel(dialogue), tools=[weather])

    async def stream() -> tuple[list[Any], list[str]]:
        result = Runner.run_streamed(agent, "How warm?", conversation_id="a")
        events = [event async for event in result.stream_events()]
        return [e.data for e in events if e.type == "raw_response_event"], [e.type for e in events]

    raw, kinds = asyncio.run(stream())
    first = raw[: next(i for i, e in enumerate(raw) if e.type == "response.completed") + 1]
    assert [event.sequence_number for event in first] == list(range(len(first)))
    types = [event.type for event in first]
    for kind in (
        "created",
        "output_item.added",
        "function_call_arguments.done",
        "output_text.done",
    ):
        assert f"response.{kind}" in types
    deltas = [e.delta for e in raw if e.type == "response.output_text.delta"]
    assert "".join(deltas) == "Let me see. It is 12 degrees." or deltas
    whole = first[-1].response
    assert [item.type for item in whole.output] == ["message", "function_call"]
    assert whole.usage.input_tokens_details.cached_tokens == 0
    assert "run_item_stream_event" in kinds
    second = ask(agent, "Thanks!", conversation_id="a")
    assert read(second)[0] < 16


def test_a_stream_that_is_left_stores_nothing(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("Hello.", "One two three four five six seven eight nine.", "Bye.")
    agent = agent_of(LongMemModel(dialogue))
    ask(agent, "Hi", conversation_id="a")

    async def leave() -> None:
        result = Runner.run_streamed(agent, "Count", conversation_id="a")
        async for event in result.stream_events():
            if getattr(event, "data", None) is not None and "delta" in event.data.type:
                result.cancel()

    asyncio.run(leave())
    assert said(dialogue, "a") == ["Hi", "Hello."]
    assert ask(agent, "Bye", conversation_id="a").final_output == "Bye."


def test_many_conversations_run_at_once() -> None:
    with InMemoryStore() as store, Dialogue(echo_engine(), store) as many:
        agent = agent_of(LongMemModel(many))

        async def talk(name: str) -> list[str]:
            outputs = []
            for i in range(3):
                result = await Runner.run(agent, f"{name} {i}", conversation_id=name)
                outputs.append(result.final_output)
            return outputs

        async def main() -> list[list[str]]:
            return await asyncio.gather(*(talk(f"user{n}") for n in range(6)))

        for n, outputs in enumerate(asyncio.run(main())):
            assert outputs == [f"re user{n} {i}" for i in range(3)]
            assert len(said(many, f"user{n}")) == 6


def test_thoughts_come_back_without_being_read_again(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("<think>Hm, hm.</think>One.", "Two.")
    agent = agent_of(LongMemModel(dialogue, session="s"))
    first = ask(agent, "a")
    assert [item.type for item in first.new_items] == ["reasoning_item", "message_output_item"]
    assert first.final_output == "One."
    second = ask(agent, [*first.to_input_list(), {"role": "user", "content": "b"}])
    assert second.final_output == "Two." and read(second)[0] < 12
    assert [info.n_turns for info in dialogue.sessions(None)] == [5]


def test_a_tool_may_wait_for_a_person(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(CAREFUL, "Done.")
    agent = agent_of(LongMemModel(dialogue), tools=[careful])
    asked = ask(agent, "Delete it.", conversation_id="s")
    state = asked.to_state()
    state.approve(asked.interruptions[0])
    done = ask(agent, state)
    assert done.final_output == "Done." and read(done)[-1] < 16
    assert said(dialogue, "s")[-2:] == ["deleted", "Done."]


def test_traces_hold_words_only_if_they_may(engine: Scripted, dialogue: Dialogue) -> None:
    spans: list[Any] = []
    seen = SimpleNamespace(
        on_trace_start=lambda trace: None,
        on_trace_end=lambda trace: None,
        on_span_start=lambda span: None,
        on_span_end=spans.append,
        shutdown=lambda: None,
        force_flush=lambda: None,
    )
    set_trace_processors([seen])  # type: ignore[list-item]
    set_tracing_disabled(False)
    try:
        for words in (True, False):
            engine.say("One.")
            ask(
                agent_of(LongMemModel(dialogue)),
                "a",
                run_config=RunConfig(trace_include_sensitive_data=words),
            )
    finally:
        set_tracing_disabled(True)
    first, second = (span.span_data for span in spans if span.span_data.type == "generation")
    assert first.output[0]["content"][0]["text"] == "One." and second.output is None
    assert first.usage == second.usage
    assert first.usage["input_tokens"] > first.usage["output_tokens"] > 0


def test_items_that_make_no_sense_are_refused_in_words(
    engine: Scripted, dialogue: Dialogue
) -> None:
    agent = agent_of(LongMemModel(dialogue))
    wrong = [
        {"type": "function_call", "name": "weather"},
        {"type": "function_call_output", "output": "12"},
        {"role": 7, "content": "a"},
        {"role": "king", "content": "a"},
        {"role": "user", "content": [{"type": "input_text"}]},
        {"role": "user"},
    ]
    for item in wrong:
        with pytest.raises((UserError, InputError)) as caught:
            asyncio.run(call_model(agent, [item]))
        assert len(str(caught.value)) > 20
    assert dialogue.sessions(None) == []


async def call_model(agent: Agent[None], items: list[Any]) -> Any:
    """The model itself, without the runner's own checks."""
    assert isinstance(agent.model, LongMemModel)
    return await agent.model.get_response(
        None, items, ModelSettings(), [], None, [], ModelTracing.DISABLED
    )


def test_without_the_package_the_adapter_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uninstall(monkeypatch, "agents", "longmem.adapters.openai_agents")
    with pytest.raises(ImportError, match=r"pip install 'longmem\[openai-agents\]'"):
        import_module("longmem.adapters.openai_agents")


def test_a_run_may_group_its_traces_without_naming_a_session(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("one")
    ask(agent_of(LongMemModel(dialogue)), "a", run_config=RunConfig(group_id="g"))
    assert dialogue.sessions(None) == []


def test_the_example_runs(tmp_path: Path) -> None:
    printed = run("openai_agents_chat.py", "chats", folder=tmp_path)
    assert "new tokens read" in printed and "popped" in printed
