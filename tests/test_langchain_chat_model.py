"""`ChatLongMem`: sessions, streams, tools, schemas and errors, as LangChain's users meet them."""

from __future__ import annotations

import asyncio
import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import ContextOverflowError, ModelError, ModelInvalidRequestError
from langchain_core.globals import set_llm_cache
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel
from scripted import Scripted, scripted_engine

from longmem import (
    ConfigError,
    Engine,
    InputError,
    SessionInUseError,
    SystemChangedError,
    TurnTooLargeError,
)
from longmem.adapters.langchain import ChatLongMem
from longmem.adapters.langchain.messages import as_messages
from longmem.adapters.langchain.options import closed
from longmem.adapters.langchain.place import Place, branch_of, surroundings
from longmem.dialogue import DivergedError
from longmem.stores import InMemoryStore


@cache
def built() -> Scripted:
    """One for all tests: each has a store of its own."""
    return scripted_engine(())


@pytest.fixture
def engine() -> Scripted:
    """It says "ok", unless a test scripts something else."""
    engine = built()
    engine.script = lambda _: "ok"
    return engine


@pytest.fixture
def chat(engine: Scripted) -> Iterator[ChatLongMem]:
    with InMemoryStore() as store:
        chat = ChatLongMem(engine=engine, store=store)
        yield chat
        chat.close()


def turns(chat: ChatLongMem, session: str) -> list[str]:
    """The texts of a session."""
    assert chat.dialogue is not None
    return [turn.text for turn in chat.dialogue.turns(chat.owner, session)]


def cached(message: BaseMessage) -> int:
    """Tokens that came from memory."""
    assert isinstance(message, AIMessage) and message.usage_metadata is not None
    return message.usage_metadata["input_token_details"]["cache_read"]


def whole(chunks: Iterator[AIMessageChunk]) -> AIMessageChunk:
    """All chunks as one."""
    first, *others = chunks
    return sum(others, first)


def test_a_session_is_named_by_keyword_field_or_config(chat: ChatLongMem) -> None:
    config: Any = {"configurable": {"thread_id": "thread"}}
    chat.invoke("one", session="keyword")
    chat.model_copy(update={"session": "field"}).invoke("two", config)
    chat.invoke("three", config)
    whole(chat.stream("four", config))
    assert turns(chat, "keyword") == ["one", "ok"]
    assert turns(chat, "field") == ["two", "ok"]
    assert turns(chat, "thread") == ["three", "ok", "four", "ok"]


def test_every_way_of_calling_reaches_the_session_of_the_config(chat: ChatLongMem) -> None:
    config: Any = {"configurable": {"thread_id": "t"}}

    async def talk() -> None:
        await chat.ainvoke("a", config)
        async for _ in chat.astream("b", config):
            pass
        async for _ in chat.astream_events("c", config, version="v2"):
            pass
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # v3 is in beta
            stream = await chat.astream_events("d", config, version="v3")
            await stream.output
            list(chat.stream_events("e", config, version="v3"))
        await chat.abatch(["f"], config)

    asyncio.run(talk())
    chat.batch(["g"], config)
    chain = ChatPromptTemplate.from_messages([("human", "{text}")]) | chat
    chain.invoke({"text": "h"}, config)
    assert turns(chat, "t")[::2] == list("abcdefgh")


def test_without_a_name_nothing_is_kept(chat: ChatLongMem) -> None:
    reply = chat.invoke("hello")
    assert "session" not in reply.response_metadata
    assert chat.dialogue is not None and chat.dialogue.sessions(None) == []


def test_only_new_messages_are_read_of_a_list_that_goes_on(
    chat: ChatLongMem, engine: Scripted
) -> None:
    before = engine.tokens_read
    messages: list[BaseMessage] = [SystemMessage("Be brief."), HumanMessage("a")]
    for text in ("b", "c", "d"):
        messages += [chat.invoke(messages, session="s"), HumanMessage(text)]
    reply = chat.invoke(messages, session="s")
    assert turns(chat, "s") == ["Be brief.", "a", "ok", "b", "ok", "c", "ok", "d", "ok"]
    assert chat.dialogue is not None
    tokens = [turn.tokens for turn in chat.dialogue.turns(None, "s")]
    assert engine.tokens_read - before == sum(tokens)
    assert cached(reply) == sum(tokens[:-2])


def test_usage_counts_history_as_cached_input(chat: ChatLongMem) -> None:
    chat.invoke("a", session="s")
    held = chat.dialogue.stats(None, "s").tokens
    for say in (chat.invoke, lambda *a, **k: whole(chat.stream(*a, **k))):
        usage = say("b", session="s").usage_metadata
        assert usage["input_token_details"]["cache_read"] == held
        assert usage["input_tokens"] > held
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
        held = chat.dialogue.stats(None, "s").tokens


def test_a_list_that_diverges_forks_rolls_back_or_is_refused(chat: ChatLongMem) -> None:
    first = chat.invoke("a", session="s")
    chat.invoke("b", session="s")
    edited = [HumanMessage("a"), first, HumanMessage("B")]
    with pytest.raises(DivergedError):
        chat.invoke(edited, session="s", diverge="refuse")
    fork = chat.invoke(edited, session="s").response_metadata["session"]
    assert turns(chat, fork) == ["a", "ok", "B", "ok"]
    assert turns(chat, "s") == ["a", "ok", "b", "ok"]
    chat.invoke(edited, session="s", diverge="rollback")
    assert turns(chat, "s") == ["a", "ok", "B", "ok"]


def test_a_list_goes_on_in_the_fork_it_was_answered_in(chat: ChatLongMem) -> None:
    first = chat.invoke("a", session="s")
    chat.invoke("b", session="s")
    messages: list[BaseMessage] = [HumanMessage("a"), first, HumanMessage("B")]
    reply = chat.invoke(messages, session="s")
    again = chat.invoke([*messages, reply, HumanMessage("C")], session="s")
    assert again.response_metadata["session"] == reply.response_metadata["session"]
    assert again.response_metadata["turn"] == 5
    assert len(chat.dialogue.sessions(None)) == 2


def test_a_list_whose_head_was_trimmed_goes_on_where_it_stood(
    chat: ChatLongMem, engine: Scripted
) -> None:
    messages: list[BaseMessage] = []
    for text in ("a", "b", "c"):
        messages.append(HumanMessage(text, id=f"id-{text}"))
        messages.append(chat.invoke(messages, session="s"))
    before = engine.tokens_read
    chat.invoke([*messages[-2:], HumanMessage("d")], session="s")
    assert turns(chat, "s")[-3:] == ["ok", "d", "ok"] and len(chat.dialogue.sessions(None)) == 1
    new = chat.dialogue.turns(None, "s")[-2:]
    assert engine.tokens_read - before == sum(turn.tokens for turn in new)


def test_replies_in_blocks_come_back_as_what_was_said(chat: ChatLongMem, engine: Scripted) -> None:
    engine.say("one", f"Let me see.{CALL}", "It is 3.", "Bye.")
    blocks = chat.model_copy(update={"output_version": "v1"})
    bound = blocks.bind_tools([add])
    messages: list[BaseMessage] = [HumanMessage("count")]
    messages += [bound.invoke(messages, session="s"), HumanMessage("1 + 2?")]
    messages.append(bound.invoke(messages, session="s"))
    assert isinstance(messages[-1].content, list)
    messages.append(add.invoke(messages[-1].tool_calls[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # v3 is in beta
        messages += [bound.stream_events(messages, session="s", version="v3").output]
    bound.invoke([*messages, HumanMessage("Thanks")], session="s")
    assert [info.id for info in chat.dialogue.sessions(None)] == ["s"]
    assert turns(chat, "s")[-3:] == ["It is 3.", "Thanks", "Bye."]


def test_tokens_are_counted_by_the_models_own_tokenizer(chat: ChatLongMem) -> None:
    ids = chat.get_token_ids("Where is my locker?")
    assert chat.dialogue.engine.tokenizer.decode(ids) == "Where is my locker?"
    assert chat.get_num_tokens("Where is my locker?") == len(ids)


def test_two_memories_of_one_thread_have_prompts_of_their_own(chat: ChatLongMem) -> None:
    critic = chat.model_copy(update={"memory": "critic"})
    config: Any = {"configurable": {"thread_id": "t"}}
    chat.invoke([SystemMessage("Write."), HumanMessage("a")], config)
    critic.invoke([SystemMessage("Judge."), HumanMessage("b")], config)
    assert turns(chat, "t")[0] == "Write." and turns(chat, "t.critic")[0] == "Judge."


def test_another_system_prompt_is_refused_or_left_out(chat: ChatLongMem) -> None:
    first = chat.invoke([SystemMessage("Write."), HumanMessage("a")], session="s")
    asked = [SystemMessage("Judge."), HumanMessage("a"), first, HumanMessage("b")]
    with pytest.raises(SystemChangedError) as caught:
        chat.invoke(asked, session="s")
    assert isinstance(caught.value, ModelInvalidRequestError)
    chat.invoke(asked, session="s", on_system="keep")
    assert turns(chat, "s") == ["Write.", "a", "ok", "b", "ok"]


def test_breaking_a_stream_off_leaves_no_trace(chat: ChatLongMem, engine: Scripted) -> None:
    engine.say("a long reply", "short")
    stream = chat.stream("a", session="s")
    next(stream)
    with pytest.raises(SessionInUseError) as caught:
        chat.invoke("b", session="s")
    assert isinstance(caught.value, ModelError) and caught.value.is_retryable
    stream.close()
    assert chat.invoke("c", session="s").text == "short"
    assert turns(chat, "s") == ["c", "short"]


def test_a_cancelled_task_leaves_no_trace(chat: ChatLongMem, engine: Scripted) -> None:
    engine.script = lambda read: "word " * 200 if "a story" in read else "ok"

    async def talk() -> None:
        for milliseconds in (0, 1, 2, 4, 8, 16):
            task = asyncio.create_task(chat.ainvoke("a story", session="s"))
            await asyncio.sleep(milliseconds / 1000)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await chat.ainvoke("b", session="s")

    asyncio.run(talk())
    assert turns(chat, "s") == ["b", "ok"] * 6


def test_replies_end_at_stop_strings_and_limits(chat: ChatLongMem, engine: Scripted) -> None:
    engine.say("one two three", "one two three", "one two three")
    stopped = chat.invoke("count", stop=[" two"])
    assert (stopped.text, stopped.response_metadata["finish_reason"]) == ("one", "stop")
    limited = chat.invoke("count", max_tokens=2)
    assert limited.response_metadata["finish_reason"] == "length"
    assert limited.usage_metadata["output_tokens"] == 2
    custom = ChatLongMem(engine=engine, stop=[" three"])
    assert custom.invoke("count").text == "one two"


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


def test_tool_calls_are_parsed_and_their_results_read(chat: ChatLongMem, engine: Scripted) -> None:
    engine.say(f"Let me see.{CALL}", "It is 3.")
    bound = chat.bind_tools([add])
    asked = HumanMessage("1 + 2?")
    called = bound.invoke([asked], session="s")
    assert called.text == "Let me see."
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 2})
    assert called.response_metadata["finish_reason"] == "tool_calls"
    reply = bound.invoke([asked, called, add.invoke(call)], session="s")
    assert reply.text == "It is 3." and cached(reply) > 0
    roles = [turn.role for turn in chat.dialogue.turns(None, "s")]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_streamed_tool_calls_come_whole_and_never_as_text(
    chat: ChatLongMem, engine: Scripted
) -> None:
    engine.say(f"Let me see.{CALL}")
    message = whole(chat.bind_tools([add]).stream("1 + 2?"))
    assert message.text == "Let me see."
    assert [call["args"] for call in message.tool_calls] == [{"a": 1, "b": 2}]


class Pick(BaseModel):
    """Pick a colour."""

    colour: Literal["red", "green"]


class Wait(BaseModel):
    """Wait for a while."""

    long: bool


@cache
def nano() -> Engine:
    """A trained model that was never shown a tool or a schema."""
    return Engine.nano()


NAMED = {"type": "function", "function": {"name": "Wait"}}


@pytest.mark.parametrize("choice", ["any", "Wait", NAMED])
def test_a_tool_that_must_be_called_is_called_by_any_model(choice: Any) -> None:
    chat = ChatLongMem(engine=nano(), max_tokens=80)
    reply = chat.bind_tools([Pick, Wait], tool_choice=choice).invoke("Which one?")
    (call,) = reply.tool_calls
    assert reply.text == "" and call["name"] in ("Pick", "Wait")
    if choice == "any":
        Pick(**call["args"]) if call["name"] == "Pick" else Wait(**call["args"])
    else:
        assert call["name"] == "Wait" and Wait(**call["args"])


class Shelf(BaseModel):
    """Where something stands."""

    row: Literal[1, 2, 3]
    left: bool


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_fits_the_schema_whatever_the_model(method: Any) -> None:
    chat = ChatLongMem(engine=nano(), max_tokens=80)
    found = chat.with_structured_output(Shelf, method=method).invoke("Where is it?")
    assert isinstance(found, Shelf)
    raw = chat.with_structured_output(Shelf.model_json_schema(), method=method, include_raw=True)
    result = raw.invoke("Where is it?")
    assert set(result["parsed"]) == {"row", "left"} and result["parsing_error"] is None
    assert isinstance(result["raw"], AIMessage)


def test_structured_output_cut_short_is_reported(engine: Scripted) -> None:
    engine.say('{"row": 1, "left": true}')
    chat = ChatLongMem(engine=engine, max_tokens=3)
    result = chat.with_structured_output(Shelf, include_raw=True).invoke("Where?")
    assert result["parsed"] is None and result["parsing_error"] is not None


def test_objects_of_a_schema_are_closed_unless_it_says_otherwise() -> None:
    class Box(BaseModel):
        """A box."""

        properties: dict[str, int]
        shelf: Shelf | None

    inner = closed(Box.model_json_schema())
    assert inner["additionalProperties"] is False
    assert inner["$defs"]["Shelf"]["additionalProperties"] is False
    assert set(inner["properties"]) == {"properties", "shelf"}
    assert inner["properties"]["properties"]["additionalProperties"] == {"type": "integer"}
    free = {"type": "object", "properties": {}, "additionalProperties": True}
    assert closed(free) == free and closed({"type": "object"}) == {"type": "object"}


def test_unknown_tools_choices_and_methods_are_refused(chat: ChatLongMem) -> None:
    with pytest.raises(InputError, match="the tools are add"):
        chat.bind_tools([add], tool_choice="subtract")
    with pytest.raises(InputError, match="cannot be read as a tool"):
        chat.bind_tools([42])  # type: ignore[list-item]
    with pytest.raises(InputError, match="there is no method"):
        chat.with_structured_output(Shelf, method="guess")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"max_token": 5}, InputError),
        ({"temperature": -1}, ConfigError),
        ({"model": "gpt-5"}, InputError),
        ({"diverge": "guess"}, InputError),
        ({"response_format": {"type": "xml"}}, InputError),
    ],
)
def test_options_that_cannot_work_are_refused(
    chat: ChatLongMem, options: dict[str, Any], kind: type[Exception]
) -> None:
    with pytest.raises(kind) as caught:
        chat.invoke("hello", **options)
    assert isinstance(caught.value, ModelInvalidRequestError)


def test_errors_are_ours_and_langchains_at_once(engine: Scripted) -> None:
    chat = ChatLongMem(engine=engine)
    with pytest.raises(InputError, match="store") as caught:
        chat.invoke("hello", session="s")
    assert isinstance(caught.value, ModelInvalidRequestError)
    long = "word " * (5 * 1024**2 // 5)
    with pytest.raises(TurnTooLargeError) as too_large:
        chat.invoke(long)
    assert isinstance(too_large.value, ContextOverflowError)


def test_a_model_needs_an_engine_or_a_dialogue() -> None:
    with pytest.raises(ValueError, match="give engine="):
        ChatLongMem()


def test_a_global_cache_does_not_answer_for_a_session(chat: ChatLongMem, engine: Scripted) -> None:
    set_llm_cache(InMemoryCache())
    try:
        chat.invoke("a", session="s")
        chat.invoke("a", session="s")
    finally:
        set_llm_cache(None)
    assert turns(chat, "s") == ["a", "ok", "a", "ok"]


def test_all_kinds_of_messages_become_turns() -> None:
    call = {"name": "add", "args": {"a": 1}, "id": "c1", "type": "tool_call"}
    messages = as_messages(
        [
            ChatMessage("be kind", role="developer"),
            HumanMessage([{"type": "text", "text": "a"}, "b"], id="h"),
            AIMessage(
                [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "c"}],
                tool_calls=[call],
            ),
            ToolMessage("1", tool_call_id="c1", name="add"),
            FunctionMessage("2", name="add"),
        ]
    )
    assert [m.role for m in messages] == ["system", "user", "assistant", "tool", "tool"]
    assert (messages[1].text, messages[1].id) == ("ab", "h")
    assert (messages[2].text, messages[2].reasoning) == ("c", "hm")
    assert messages[2].tool_calls[0].arguments == '{"a": 1}'
    assert (messages[3].tool_call_id, messages[4].name) == ("c1", "add")


@pytest.mark.parametrize(
    "message",
    [
        HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]),
        RemoveMessage(id="x"),
        ChatMessage("hi", role="narrator"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(chat: ChatLongMem, message: BaseMessage) -> None:
    with pytest.raises(InputError, match=r"image_url|RemoveMessage|narrator"):
        chat.invoke([message])


def test_the_branch_is_that_of_the_last_reply_of_this_memory() -> None:
    def reply(branch: str, memory: str = "", provider: str = "longmem") -> AIMessage:
        details = {"model_provider": provider, "memory": memory, "branch": branch, "turn": 1}
        return AIMessage("ok", response_metadata=details)

    messages = [reply("~0123abcd"), reply("~89abcdef", "critic"), reply("~ffffffff", "", "openai")]
    assert branch_of(messages) == "~0123abcd"
    assert branch_of(messages, "critic") == "~89abcdef"
    assert branch_of([reply("/../x")]) == "" == branch_of([])
    assert Place("t", "critic", "~89abcdef").session == "t.critic~89abcdef"
    assert Place(None, "critic").session is None


def test_a_config_without_a_graph_tells_the_thread_alone() -> None:
    assert surroundings({"configurable": {"thread_id": 7}}) == {"thread": "7"}
    assert surroundings({}) == {}


@pytest.mark.parametrize(
    ("adapter", "missing", "extra"),
    [
        ("longmem.adapters.langchain", "langchain_core", "langchain"),
        ("longmem.adapters.langgraph", "langgraph.checkpoint.base", "langgraph"),
    ],
)
def test_without_the_framework_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, adapter: str, missing: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, adapter, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"pip install 'longmem\[{extra}\]'"):
        importlib.import_module(adapter)


def test_importing_the_adapters_loads_no_framework() -> None:
    code = "import sys, longmem.adapters; print({'langchain_core', 'langgraph'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
