"""The Agents SDK's session over longmem's store: with longmem's model nothing is read or kept twice,
and popping an item takes the memory back; with any other model it is a plain store of items."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dialogues
import frameworks
import pytest
from agents import (
    Agent,
    Model,
    ModelResponse,
    RunConfig,
    Runner,
    SessionSettings,
    Usage,
    set_tracing_disabled,
)
from agents.exceptions import UserError
from agents.memory import Session
from agents.run_config import CallModelData, ModelInputData
from openai.types.responses import ResponseOutputMessage, ResponseOutputText
from scripted import Scripted
from test_openai_agents import CAREFUL, WEATHER, agent_of, ask, careful, read, said, weather

from longmem.adapters.openai_agents import LongMemModel, LongMemSession
from longmem.adapters.openai_agents.kept_items import KeptItems
from longmem.dialogue import Dialogue, Message, Request
from longmem.errors import SessionInUseError
from longmem.stores import SQLiteStore

set_tracing_disabled(True)


engine, dialogue = frameworks.engine, dialogues.dialogue


def items(session: LongMemSession, limit: int | None = None) -> list[Any]:
    return asyncio.run(session.get_items(limit))


def add(session: LongMemSession, *new: Any) -> None:
    asyncio.run(session.add_items(list(new)))


def pop(session: LongMemSession) -> Any:
    return asyncio.run(session.pop_item())


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def texts(session: LongMemSession) -> list[str]:
    """What the items say, calls by their name."""
    return [_text(item) for item in items(session)]


def _text(item: dict[str, Any]) -> str:
    if item.get("type") in ("function_call", "function_call_output"):
        return str(item.get("name") or item["output"])
    content = item["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def kept(session: LongMemSession) -> int:
    """Items that the store's records hold."""
    return len(session._kept.read())


def test_it_is_a_session_of_the_sdk(dialogue: Dialogue) -> None:
    session = LongMemSession("a", dialogue)
    assert isinstance(session, Session) and session.session_id == "a"
    assert items(session) == [] and pop(session) is None
    asyncio.run(session.clear_session())


def test_runs_with_a_session_read_and_keep_everything_once(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say(WEATHER, "12 degrees.", "Welcome.")
    agent, session = (
        agent_of(LongMemModel(dialogue), tools=[weather]),
        LongMemSession("a", dialogue),
    )
    first = ask(agent, "How warm is it?", session=session)
    second = ask(agent, "Thanks!", session=session)
    assert read(first)[1] < 24 and read(second)[0] < 16
    call = "weather"
    said_so_far = [
        "How warm is it?",
        call,
        "12 degrees in Bern",
        "12 degrees.",
        "Thanks!",
        "Welcome.",
    ]
    assert texts(session) == said_so_far
    assert kept(session) == 0
    assert [info.n_turns for info in dialogue.sessions(None)] == [7]
    assert texts(session)[-2:] == [_text(item) for item in items(session, 2)]


def test_a_streamed_run_with_a_session_keeps_everything_once(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say(WEATHER, "12 degrees.", "Welcome.")
    agent, session = (
        agent_of(LongMemModel(dialogue), tools=[weather]),
        LongMemSession("a", dialogue),
    )

    async def stream(said: str) -> None:
        result = Runner.run_streamed(agent, said, session=session)
        async for _ in result.stream_events():
            pass

    asyncio.run(stream("How warm?"))
    asyncio.run(stream("Thanks!"))
    assert texts(session)[-2:] == ["Thanks!", "Welcome."] and len(texts(session)) == 6
    assert kept(session) == 0
    assert [info.n_turns for info in dialogue.sessions(None)] == [7]


def test_popping_takes_the_memory_back(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two", "another two", "three")
    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    ask(agent, "a", session=session)
    ask(agent, "b", session=session)
    popped = [pop(session), pop(session)]
    assert [_text(item) for item in popped] == ["two", "b"]
    assert said(dialogue, "a") == ["a", "one"]
    again = ask(agent, "b", session=session)
    assert again.final_output == "another two" and read(again)[0] < 12
    assert texts(session) == ["a", "one", "b", "another two"]
    assert _text(pop(session)) == "another two"
    assert texts(session) == ["a", "one", "b"] and said(dialogue, "a") == ["a", "one"]
    three = ask(agent, "B", session=session)
    assert texts(session) == ["a", "one", "b", "B", "three"] and read(three)[0] < 20
    assert len(dialogue.sessions(None)) == 1


def test_popping_all_leaves_an_empty_session(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("Hm. " + WEATHER, "12 degrees.", "one")
    agent, session = (
        agent_of(LongMemModel(dialogue), tools=[weather]),
        LongMemSession("a", dialogue),
    )
    ask(agent, "How warm?", session=session)
    popped = []
    while (item := pop(session)) is not None:
        popped.append(_text(item))
    assert popped == ["12 degrees.", "12 degrees in Bern", "weather", "Hm.", "How warm?"]
    assert items(session) == [] and said(dialogue, "a") == []
    assert ask(agent, "a", session=session).final_output == "one"


def test_a_pop_that_was_broken_off_loses_nothing(
    engine: Scripted, dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.say("one")
    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    ask(agent, "a", session=session)
    with monkeypatch.context() as patch:
        patch.setattr(dialogue, "rollback", _raise)
        with pytest.raises(RuntimeError):
            pop(session)
    assert texts(session) == ["a", "one"]
    with monkeypatch.context() as patch:
        patch.setattr(KeptItems, "settle", _raise)
        with pytest.raises(RuntimeError):
            pop(session)
    assert texts(session) == ["a"]
    add(session, user("b"))
    assert texts(session) == ["a", "b"]


def _raise(*_: Any) -> None:
    raise RuntimeError("the power went off")


def test_clearing_deletes_items_and_memory(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")
    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    ask(agent, "a", session=session)
    add(session, user("b"))
    asyncio.run(session.clear_session())
    assert items(session) == [] and dialogue.sessions(None) == []
    assert ask(agent, "c", session=session).final_output == "two"


def test_what_others_added_is_read_once_with_the_next_run(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("three", "four")
    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    answer = {"role": "assistant", "type": "message", "id": "msg_other", "status": "completed"}
    answer["content"] = [{"type": "output_text", "text": "one", "annotations": []}]  # type: ignore[assignment]
    add(session, user("a"), answer)
    assert [info.n_turns for info in dialogue.sessions(None)] == [0] and kept(session) == 2
    ask(agent, "b", session=session)
    assert texts(session) == ["a", "one", "b", "three"] and kept(session) == 0
    assert said(dialogue, "a") == ["a", "one", "b", "three"]
    assert read(ask(agent, "c", session=session))[0] < 12


def test_a_run_that_failed_leaves_its_input_for_the_next(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say()
    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    with pytest.raises(AssertionError):
        ask(agent, "a", session=session)
    assert texts(session) == ["a"]
    assert [info.n_turns for info in dialogue.sessions(None)] == [0]  # the items, and no memory
    engine.say("one")
    ask(agent, "b", session=session)
    assert texts(session) == ["a", "b", "one"] and kept(session) == 0


def test_a_limited_run_reads_no_history_again(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two", "three")
    agent = agent_of(LongMemModel(dialogue))
    session = LongMemSession("a", dialogue, session_settings=SessionSettings(limit=2))
    for text in ("a", "b"):
        ask(agent, text, session=session)
    assert read(ask(agent, "c", session=session))[0] < 12
    assert said(dialogue, "a") == ["a", "one", "b", "two", "c", "three"]
    assert len(items(session)) == 2 and len(items(session, 10)) == 6 and items(session, 0) == []


def test_a_tool_may_wait_for_a_person(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say(CAREFUL, "Done.", "Bye.")
    agent, session = (
        agent_of(LongMemModel(dialogue), tools=[careful]),
        LongMemSession("a", dialogue),
    )
    asked = ask(agent, "Delete it.", session=session)
    state = asked.to_state()
    state.approve(asked.interruptions[0])
    done = ask(agent, state, session=session)
    assert done.final_output == "Done." and read(done)[-1] < 16
    assert texts(session) == ["Delete it.", "careful", "deleted", "Done."] and kept(session) == 0
    assert read(ask(agent, "Bye", session=session))[0] < 12


def test_a_handoff_goes_on_in_the_same_session(engine: Scripted, dialogue: Dialogue) -> None:
    over = '<tool_call>\n{"name": "transfer_to_poet", "arguments": {}}\n</tool_call>'
    engine.say("Hello.", over, "Roses are red.", "Violets are blue.")
    model, session = LongMemModel(dialogue, on_system="keep"), LongMemSession("a", dialogue)
    poet = Agent("poet", instructions="Rhyme.", model=model)
    agent = agent_of(model, handoffs=[poet])
    ask(agent, "Hi", session=session)
    result = ask(agent, "A poem!", session=session)
    assert result.last_agent is poet and read(result)[1] < 30
    more = ask(poet, "More!", session=session)
    assert more.final_output == "Violets are blue." and read(more)[0] < 12
    assert [info.id for info in dialogue.sessions(None)] == ["a"] and kept(session) == 0


def test_thoughts_are_items_too(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("<think>Hm, hm.</think>One.", "Two.")
    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    ask(agent, "a", session=session)
    assert [item.get("type", "user") for item in items(session)] == ["user", "reasoning", "message"]
    assert read(ask(agent, "b", session=session))[0] < 12 and kept(session) == 0
    assert len(dialogue.sessions(None)) == 1


def test_an_agent_of_another_model_may_take_over(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "three")
    mine, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    ask(mine, "a", session=session)
    other = mine.clone(model=FakeModel("two"))
    assert ask(other, "b", session=session).final_output == "two"
    assert kept(session) == 2
    three = ask(mine, "c", session=session)
    assert three.final_output == "three" and kept(session) == 0
    assert texts(session) == said(dialogue, "a") == ["a", "one", "b", "two", "c", "three"]


class FakeModel(Model):
    """Says one thing."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def get_response(self, *_: Any, **__: Any) -> ModelResponse:
        part = ResponseOutputText(annotations=[], text=self.text, type="output_text")
        message = ResponseOutputMessage(
            id="msg_1", content=[part], role="assistant", status="completed", type="message"
        )
        return ModelResponse([message], Usage(), None)

    def stream_response(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


def test_a_session_in_use_refuses_a_second_run(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")
    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    ask(agent, "a", session=session)
    with (
        dialogue.stream(Request([Message("user", "meanwhile")], session="a")),
        pytest.raises(SessionInUseError),
    ):
        ask(agent, "b", session=session)
    assert texts(session) == ["a", "one", "b"]  # the SDK has kept what was asked
    assert ask(agent, "c", session=session).final_output == "two"


def test_input_that_is_edited_on_its_way_is_kept_as_the_model_read_it(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("one", "two")

    def louder(data: CallModelData[None]) -> ModelInputData:
        *before, last = data.model_data.input
        last = {**last, "content": last["content"].upper()}  # type: ignore[misc,typeddict-item]
        return ModelInputData([*before, last], data.model_data.instructions)

    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    config = RunConfig(call_model_input_filter=louder)
    ask(agent, "a", session=session, run_config=config)
    second = ask(agent, "b", session=session, run_config=config)
    assert read(second)[0] < 12 and kept(session) == 0
    assert texts(session) == ["A", "one", "B", "two"]


def test_a_run_that_leaves_out_part_of_the_past_is_answered_in_a_fork(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("one", "two", "three", "four")

    def without_b(data: CallModelData[None]) -> ModelInputData:
        given = data.model_data.input
        return ModelInputData([*given[:2], *given[4:]], data.model_data.instructions)

    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    ask(agent, "a", session=session)
    ask(agent, "b", session=session)
    ask(agent, "c", session=session, run_config=RunConfig(call_model_input_filter=without_b))
    [fork] = [info.id for info in dialogue.sessions(None) if info.id != "a"]
    assert said(dialogue, fork) == ["a", "one", "c", "three"]
    everything = ["a", "one", "b", "two", "c", "three"]
    assert texts(session) == everything and kept(session) == 2
    ask(agent, "d", session=session)
    assert texts(session) == said(dialogue, "a") == [*everything, "d", "four"]
    assert kept(session) == 0


def test_items_that_a_run_leaves_out_stay(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")

    def without_search(data: CallModelData[None]) -> ModelInputData:
        given = [i for i in data.model_data.input if i.get("type") != "web_search_call"]
        return ModelInputData(given, data.model_data.instructions)

    agent, session = agent_of(LongMemModel(dialogue)), LongMemSession("a", dialogue)
    odd = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    add(session, odd)
    with pytest.raises(UserError, match="'web_search_call'"):
        ask(agent, "a", session=session)
    config = RunConfig(call_model_input_filter=without_search)
    ask(agent, "b", session=session, run_config=config)
    assert odd in items(session) and kept(session) == 1
    assert said(dialogue, "a") == ["a", "b", "one"]


def test_owners_have_sessions_of_their_own(engine: Scripted, dialogue: Dialogue) -> None:
    engine.say("one", "two")
    for owner, reply in (("ann", "one"), ("bob", "two")):
        agent = agent_of(LongMemModel(dialogue, owner=owner))
        session = LongMemSession("a", dialogue, owner=owner)
        assert ask(agent, "a", session=session).final_output == reply
        assert texts(session) == ["a", reply]
    assert dialogue.sessions(None) == []


def test_it_goes_on_in_another_process(engine: Scripted, tmp_path: Path) -> None:
    engine.say("one")
    with SQLiteStore(tmp_path) as store, Dialogue(engine, store) as dialogue:
        ask(agent_of(LongMemModel(dialogue)), "a", session=LongMemSession("s", dialogue))
        add(LongMemSession("s", dialogue), user("and b"))
    code = f"""
from scripted import scripted_engine
from test_openai_agents_session import *
engine = scripted_engine(["two"])
with SQLiteStore({str(tmp_path)!r}) as store, Dialogue(engine, store) as dialogue:
    session = LongMemSession("s", dialogue)
    result = ask(agent_of(LongMemModel(dialogue)), "c", session=session)
    print(texts(session), read(result)[0] < 24, kept(session))
"""
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": here, "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout.strip() == "['a', 'one', 'and b', 'c', 'two'] True 0", done.stderr


@pytest.mark.parametrize("verb", ["delete", "erase"])
def test_items_added_before_the_first_run_go_with_their_session(
    engine: Scripted, dialogue: Dialogue, verb: str
) -> None:
    for owner, run in ((None, False), ("ann", True)):
        session = LongMemSession("early", dialogue, owner=owner)
        add(session, user("read"))
        if run:
            engine.say("one")
            ask(agent_of(LongMemModel(dialogue, owner=owner)), "a", session=session)
            assert texts(session) == ["read", "a", "one"]
        add(session, user("unread"))
        getattr(dialogue, verb)(owner, "early")
        assert items(session) == []


def test_over_a_store_alone_it_keeps_any_models_items(tmp_path: Path) -> None:
    odd = {"type": "web_search_call", "id": "ws_1", "status": "completed"}
    with SQLiteStore(tmp_path) as store:
        session = LongMemSession("s", store)
        add(session, *(user(str(i)) for i in range(150)), odd)
        assert pop(session) == odd
    with SQLiteStore(tmp_path) as store:
        session, other = LongMemSession("s", store), LongMemSession("s2", store)
        assert texts(session) == [str(i) for i in range(150)]
        assert texts(session)[-3:] == [_text(item) for item in items(session, 3)]
        add(other, user("elsewhere"))
        asyncio.run(session.clear_session())
        assert items(session) == [] and texts(other) == ["elsewhere"]


def test_over_a_store_alone_a_memory_of_that_name_is_refused(
    engine: Scripted, dialogue: Dialogue
) -> None:
    engine.say("one")
    ask(agent_of(LongMemModel(dialogue)), "a", conversation_id="s")
    assert dialogue.store is not None
    with pytest.raises(UserError, match="give it the model's Dialogue"):
        LongMemSession("s", dialogue.store)
    assert Agent("x").model is None  # nothing here has asked for another model
