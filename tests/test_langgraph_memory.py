"""What a checkpointer's verbs on a thread do to the memory of that thread."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph.state import CompiledStateGraph
from test_langgraph_time_travel import after, graph, model, say, sessions, turns

from longmem import InputError, SessionInUseError
from longmem.adapters.langchain import ChatLongMem
from longmem.adapters.langgraph import LongMemSaver
from longmem.store import Store
from longmem.stores import InMemoryStore, SQLiteStore


@pytest.fixture(params=["sqlite", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with SQLiteStore(tmp_path) if request.param == "sqlite" else InMemoryStore() as store:
        yield store


def thread(name: str, run: str = "", **further: Any) -> dict[str, Any]:
    """The config of one run in a thread."""
    return {"configurable": {"thread_id": name, **({"run_id": run} if run else {}), **further}}


def begun(store: Store, *texts: str, name: str = "t") -> tuple[ChatLongMem, CompiledStateGraph]:
    """A thread in which these were said, one run for each: its id is what was said."""
    chat = model(store)
    app = graph(chat, store)
    for text in texts:
        say(app, text, config=thread(name, text))
    return chat, app


def saver_of(app: CompiledStateGraph) -> LongMemSaver:
    assert isinstance(app.checkpointer, LongMemSaver)
    return app.checkpointer


def messages(app: CompiledStateGraph, name: str = "t") -> list[str]:
    """The texts of a thread's latest state."""
    return [m.text for m in app.get_state(thread(name)).values.get("messages", ())]


def test_deleting_a_thread_deletes_its_sessions_and_no_others(store: Store) -> None:
    chat, app = begun(store, "a", "b")
    say(app, "FORK", config=after(app, "a", "ok", config=thread("t")))
    say(app, "x", config=thread("t2"))
    assert len(sessions(chat)) == 3
    saver_of(app).delete_thread("t")
    assert sessions(chat) == {"t2"} and messages(app) == []
    assert say(app, "new", config=thread("t"))[-1].text == "ok"
    assert turns(chat, "t") == ["new", "ok"]


def test_a_copied_thread_has_a_memory_of_its_own_and_reads_nothing_twice(store: Store) -> None:
    chat, app = begun(store, "a", "b")
    fork = say(app, "FORK", config=after(app, "a", "ok", config=thread("t")))[-1]
    saver_of(app).copy_thread("t", "copy")
    branch = "copy" + fork.response_metadata["session"].removeprefix("t")
    assert sessions(chat) == {"t", fork.response_metadata["session"], "copy", branch}
    reply = say(app, "c", config=thread("copy"))[-1]
    assert turns(chat, branch) == ["a", "ok", "FORK", "ok", "c", "ok"]
    assert turns(chat, fork.response_metadata["session"]) == ["a", "ok", "FORK", "ok"]
    kept = sum(turn.tokens for turn in chat.dialogue.turns(None, branch, 0, 4))
    assert reply.usage_metadata["input_token_details"]["cache_read"] == kept


def test_a_copy_onto_a_thread_that_is_there_is_refused(store: Store) -> None:
    _, app = begun(store, "a")
    say(app, "x", config=thread("copy"))
    with pytest.raises(InputError, match="'copy' is there already"):
        saver_of(app).copy_thread("t", "copy")
    assert messages(app, "copy") == ["x", "ok"]


def test_a_thread_goes_on_as_a_whole_after_pruning(store: Store) -> None:
    chat, app = begun(store, "a", "b")
    saver_of(app).prune(["t"])
    assert len(list(app.get_state_history(thread("t")))) == 1
    assert turns(chat, "t") == ["a", "ok", "b", "ok"]
    say(app, "c", config=thread("t"))
    assert turns(chat, "t") == ["a", "ok", "b", "ok", "c", "ok"]


def test_pruning_deletes_the_branches_that_no_checkpoint_ends_on(store: Store) -> None:
    chat, app = begun(store, "a", "b")
    fork = say(app, "FORK", config=after(app, "a", "ok", config=thread("t")))[-1]
    saver_of(app).prune(["t"])
    assert messages(app) == ["a", "ok", "FORK", "ok"]
    assert sessions(chat) == {fork.response_metadata["session"]}
    say(app, "more", config=thread("t"))
    assert turns(chat, fork.response_metadata["session"])[-2:] == ["more", "ok"]


def test_deleting_the_last_run_rolls_the_memory_back(store: Store) -> None:
    chat, app = begun(store, "a", "b", "c")
    saver_of(app).delete_for_runs(["c"])
    assert messages(app) == ["a", "ok", "b", "ok"]
    assert turns(chat, "t") == ["a", "ok", "b", "ok"]
    reply = say(app, "d", config=thread("t"))[-1]
    assert reply.response_metadata["session"] == "t"
    assert turns(chat, "t") == ["a", "ok", "b", "ok", "d", "ok"]


def test_deleting_a_run_in_the_middle_keeps_what_later_states_hold(store: Store) -> None:
    chat, app = begun(store, "a", "b", "c")
    saver_of(app).delete_for_runs(["b"])
    assert turns(chat, "t") == ["a", "ok", "b", "ok", "c", "ok"] == messages(app)
    states = list(app.get_state_history(thread("t")))
    ids = {state.config["configurable"]["checkpoint_id"] for state in states}
    parents = {s.parent_config["configurable"]["checkpoint_id"] for s in states if s.parent_config}
    assert parents <= ids  # none hangs on a checkpoint that is gone


def test_deleting_the_run_of_a_branch_deletes_the_branch(store: Store) -> None:
    chat, app = begun(store, "a", "b")
    old = after(app, "a", "ok", config=thread("t"))
    old["configurable"]["run_id"] = "FORK"
    say(app, "FORK", config=old)
    assert len(sessions(chat)) == 2
    saver_of(app).delete_for_runs(["FORK"])
    assert sessions(chat) == {"t"}
    assert turns(chat, "t") == ["a", "ok", "b", "ok"] == messages(app)


def test_deleting_all_runs_deletes_the_memory(store: Store) -> None:
    chat, app = begun(store, "a", "b")
    saver_of(app).delete_for_runs(["a", "b"])
    assert sessions(chat) == set() and messages(app) == []


def test_a_reply_that_never_reached_a_checkpoint_is_pruned_from_memory(store: Store) -> None:
    chat, app = begun(store, "a")
    chat.invoke("lost", session="t")
    saver_of(app).prune(["t"])
    assert turns(chat, "t") == ["a", "ok"]


def test_sessions_that_no_state_ever_held_are_left_alone(store: Store) -> None:
    chat, app = begun(store, "a")
    chat.invoke("alone", session="other")
    chat.invoke("a memory of its own", session="t", memory="notes")
    saver_of(app).prune(["t"])
    assert sessions(chat) == {"t", "other", "t.notes"}
    saver_of(app).delete_thread("t")
    assert sessions(chat) == {"other"}


def test_a_thread_whose_model_is_replying_is_not_deleted(store: Store) -> None:
    chat, app = begun(store, "a")
    with replying(chat, "t"), pytest.raises(SessionInUseError):
        saver_of(app).delete_thread("t")
    assert messages(app) == ["a", "ok"]
    saver_of(app).delete_thread("t")
    assert messages(app) == []


@contextmanager
def replying(chat: ChatLongMem, session: str) -> Iterator[None]:
    """In the middle of a reply, which is then dropped."""
    stream = chat.stream("wait", session=session)
    next(stream)
    try:
        yield
    finally:
        stream.close()


def test_a_saver_without_a_model_acts_on_sessions_at_rest(store: Store) -> None:
    chat, _ = begun(store, "a", "b", "c")
    chat.close()
    alone = LongMemSaver(store)
    asyncio.run(alone.acopy_thread("t", "copy"))
    asyncio.run(alone.adelete_for_runs(["c"]))
    reopened = model(store)
    assert turns(reopened, "t") == ["a", "ok", "b", "ok"] == turns(reopened, "copy")
    reopened.close()
    asyncio.run(alone.adelete_thread("t"))
    assert sessions(model(store)) == {"copy"}


def test_owners_have_threads_of_their_own(store: Store) -> None:
    ours, theirs = model(store, owner="us"), model(store, owner="them")
    app = graph(ours, store)
    app.checkpointer = LongMemSaver(store, dialogue=ours.dialogue, owner="us")
    say(app, "a", config=thread("t"))
    other = LongMemSaver(store, dialogue=theirs.dialogue, owner="them")
    theirs.invoke("hi", session="t")
    assert list(other.list(None)) == []
    other.delete_thread("t")
    assert [turn.text for turn in ours.dialogue.turns("us", "t")] == ["a", "ok"]
    assert messages(app) == ["a", "ok"] and theirs.dialogue.sessions("them") == []


@pytest.mark.parametrize("seed", range(3))
def test_every_checkpoint_that_is_left_has_its_conversation_in_memory(seed: int) -> None:
    rng = random.Random(seed)
    with InMemoryStore() as store:
        chat = model(store)
        app = graph(chat, store)
        saver, names = saver_of(app), ["t"]
        for step in range(30):
            change(rng, app, names, step)
            for found in saver.list(None):
                state = [m.text for m in found.checkpoint["channel_values"].get("messages", ())]
                held = saver.session_of(found.config)
                said = [] if held is None else chat.dialogue.turns(None, held[0], 0, held[1] + 1)
                while state and state[-1] != "ok":
                    state.pop()  # it waits for its answer
                assert [turn.text for turn in said] == state
        chat.close()


def change(rng: random.Random, app: CompiledStateGraph, names: list[str], step: int) -> None:
    """Say something, now or in the past; or prune, delete a run, copy, delete a thread."""
    saver, name = saver_of(app), rng.choice(names)
    states = list(app.get_state_history(thread(name)))
    match rng.choices(["say", "back", "prune", "run", "copy", "delete"], [8, 6, 1, 2, 1, 1])[0]:
        case "say":
            say(app, f"m{step}", config=thread(name, f"{step}"))
        case "back" if states:
            old = rng.choice(states).config["configurable"]
            say(app, f"m{step}", config={"configurable": {**old, "run_id": f"{step}"}})
        case "prune":
            saver.prune([name])
        case "run":
            saver.delete_for_runs([str(rng.randrange(step + 1))])
        case "copy":
            names.append(f"copy{step}")
            saver.copy_thread(name, names[-1])
        case "delete":
            saver.delete_thread(name)


def test_an_erased_thread_leaves_nothing_on_disk(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path) as store:
        chat = model(store)
        app = graph(chat, store)
        app.checkpointer = LongMemSaver(store, dialogue=chat.dialogue, erase=True)
        say(app, "CANARY", config=thread("CANARY-THREAD"))
        assert canary_in(tmp_path)
        saver_of(app).delete_thread("CANARY-THREAD")
        assert not canary_in(tmp_path)
        chat.close()
    assert not canary_in(tmp_path)


def canary_in(folder: Path) -> bool:
    """Whether any file holds the word, as it is or as base64 at any offset."""
    forms = {b"CANARY"} | {base64.b64encode(b"CANARY"[i:])[:5] for i in range(3)}
    data = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return any(form in each for each in data for form in forms)
