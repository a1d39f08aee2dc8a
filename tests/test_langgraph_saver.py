"""`LongMemSaver` beyond the conformance suite: paging, deltas, ciphers, what lies in the database."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import WRITES_IDX_MAP, CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.types import ERROR
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict

from longmem import InputError, StoreReadOnlyError
from longmem.adapters.langgraph import LongMemSaver
from longmem.adapters.langgraph.rows import replies_in
from longmem.store import Store
from longmem.stores import InMemoryStore, SQLiteStore

T: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}


@pytest.fixture
def store() -> Iterator[Store]:
    with InMemoryStore() as store:
        yield store


def put(saver: LongMemSaver, config: Any = T, **values: Any) -> Any:
    """A checkpoint behind that of `config`; its config."""
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = values
    checkpoint["channel_versions"] = {name: saver.get_next_version(None, None) for name in values}
    metadata: Any = {"source": "loop", "step": 0, "parents": {}}
    return saver.put(config, checkpoint, metadata, checkpoint["channel_versions"])


def ids(found: Iterator[CheckpointTuple]) -> list[str]:
    return [each.config["configurable"]["checkpoint_id"] for each in found]


def id_of(config: Any) -> str:
    return str(config["configurable"]["checkpoint_id"])


def test_long_threads_are_listed_page_by_page_newest_first(store: Store) -> None:
    saver = LongMemSaver(store)
    configs = [T]
    for i in range(150):
        configs.append(put(saver, configs[-1], i=i))
    made = [id_of(config) for config in reversed(configs[1:])]
    assert ids(saver.list(T)) == made
    assert ids(saver.list(T, before=configs[100], limit=70)) == made[51:121]
    assert ids(saver.list(T, limit=0)) == []
    assert saver.get_tuple(T).checkpoint["channel_values"] == {"i": 149}


def test_all_threads_and_namespaces_are_listed_when_none_is_named(store: Store) -> None:
    saver = LongMemSaver(store)
    places = [("t", ""), ("t", "child:1"), ("u/v %", ""), ("t", "")]
    made = [
        put(saver, {"configurable": {"thread_id": thread, "checkpoint_ns": namespace}})
        for thread, namespace in places
    ]
    newest_first = [id_of(config) for config in reversed(made)]
    assert ids(saver.list(None)) == newest_first
    assert ids(saver.list(None, before=made[2])) == newest_first[2:]
    assert ids(saver.list({"configurable": {"thread_id": "t"}})) == [
        newest_first[i] for i in (0, 2, 3)
    ]
    found = saver.get_tuple({"configurable": {"thread_id": "u/v %"}})
    assert found is not None and found.config["configurable"]["thread_id"] == "u/v %"


def test_writes_come_in_the_order_of_their_paths_and_errors_replace_each_other(
    store: Store,
) -> None:
    saver = LongMemSaver(store)
    config = put(saver)
    saver.put_writes(config, [("x", 1), ("x", 2)], "b", "~2")
    saver.put_writes(config, [("x", n) for n in range(12)], "a", "~10")
    saver.put_writes(config, [("x", 99)], "b", "~2")
    for text in ("first", "second"):
        saver.put_writes(config, [(ERROR, text)], "c", "~3")
    writes = saver.get_tuple(config).pending_writes
    assert writes == [
        *(("a", "x", n) for n in range(12)),
        ("b", "x", 1),
        ("b", "x", 2),
        ("c", ERROR, "second"),
    ]
    assert WRITES_IDX_MAP[ERROR] < 0
    with pytest.raises(InputError, match="name its id"):
        saver.put_writes(T, [("x", 1)], "a")


def test_branches_that_wrote_the_same_channel_keep_their_own_values(store: Store) -> None:
    saver = LongMemSaver(store)
    root = put(saver, x=0)
    left, right = put(saver, root, x="left"), put(saver, root, x="right")
    assert saver.get_tuple(left).checkpoint["channel_values"] == {"x": "left"}
    assert saver.get_tuple(right).checkpoint["channel_values"] == {"x": "right"}
    saver.prune(["t"])
    assert ids(saver.list(T)) == [id_of(right)]
    assert saver.get_tuple(right).checkpoint["channel_values"] == {"x": "right"}
    assert store.records.list("langgraph.values")[1:] == []


def test_everything_is_text_in_the_sessions_database_and_nothing_is_pickled(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path) as store:
        saver = LongMemSaver(store)
        put(saver, messages=[HumanMessage("hello")], data=b"\x00\xff", when={1, 2})
    rows = sqlite3.connect(tmp_path / "longmem.db").execute("SELECT key, value FROM records")
    kinds = [json.loads(value).get("value", [""])[0] for _, value in rows]
    assert "pickle" not in kinds and {"msgpack", "bytes"} <= set(kinds)
    with SQLiteStore(tmp_path, read_only=True) as store:
        saver = LongMemSaver(store)
        values = saver.get_tuple(T).checkpoint["channel_values"]
        assert values["messages"][0].text == "hello"
        assert (values["data"], values["when"]) == (b"\x00\xff", {1, 2})
        with pytest.raises(StoreReadOnlyError):
            put(saver, x=1)


class Reversed:
    """A cipher for tests."""

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "reversed", plaintext[::-1]

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        assert ciphername == "reversed"
        return ciphertext[::-1]


def test_an_encrypting_serializer_sees_all_that_is_said(store: Store) -> None:
    saver = LongMemSaver(store, serde=EncryptedSerializer(Reversed()))
    config = put(saver, x="secret")
    saver.put_writes(config, [("x", "secret")], "task")
    kinds = {
        row["value"][0]
        for space in ("values", "writes")
        for _, row in store.records.list(f"langgraph.{space}")
    }
    assert kinds == {"msgpack+reversed"}
    found = saver.get_tuple(T)
    assert found.checkpoint["channel_values"] == {"x": "secret"} and found.metadata["step"] == 0
    assert list(saver.list(T, filter={"step": 0})) == [found]


def extend(state: Sequence[str] | None, writes: Sequence[Sequence[str]]) -> list[str]:
    return [*(state or ()), *(text for write in writes for text in write)]


class Notes(TypedDict):
    """A state of which only updates are stored, and now and then the whole."""

    notes: Annotated[list[str], DeltaChannel(extend, snapshot_frequency=5)]


def notebook(saver: LongMemSaver) -> Any:
    """A graph whose node adds a note to each that comes in."""
    builder = StateGraph(Notes)
    builder.add_node("write", lambda state: {"notes": [f"re: {state['notes'][-1]}"]})
    return builder.add_edge(START, "write").compile(checkpointer=saver)


def noted(store: Store, runs: int) -> tuple[LongMemSaver, Any, list[str]]:
    """A thread of so many runs, and what it holds."""
    saver = LongMemSaver(store)
    app = notebook(saver)
    for i in range(runs):
        app.invoke({"notes": [str(i)]}, {"configurable": {"thread_id": "t", "run_id": f"run{i}"}})
    return saver, app, [text for i in range(runs) for text in (str(i), f"re: {i}")]


@pytest.mark.parametrize("runs", [3, 5, 8])
def test_pruning_keeps_what_channels_of_updates_are_rebuilt_from(store: Store, runs: int) -> None:
    saver, app, notes = noted(store, runs)
    before = len(list(saver.list(T)))
    saver.prune(["t"])
    assert app.get_state(T).values["notes"] == notes
    assert len(list(saver.list(T))) < before
    app.invoke({"notes": ["more"]}, T)
    assert app.get_state(T).values["notes"] == [*notes, "more", "re: more"]


def test_a_run_whose_updates_others_need_is_not_deleted_alone(store: Store) -> None:
    saver, app, notes = noted(store, 2)
    with pytest.raises(InputError, match="delete the later runs as well"):
        saver.delete_for_runs(["run0"])
    assert app.get_state(T).values["notes"] == notes
    saver.delete_for_runs(["run0", "run1"])
    assert list(saver.list(T)) == []


def test_a_copied_thread_of_updates_is_whole(store: Store) -> None:
    saver, app, notes = noted(store, 3)
    asyncio.run(saver.acopy_thread("t", "copy"))
    saver.delete_thread("t")
    assert app.get_state({"configurable": {"thread_id": "copy"}}).values["notes"] == notes
    history = asyncio.run(
        saver.aget_delta_channel_history(
            config={"configurable": {"thread_id": "copy", "checkpoint_ns": ""}}, channels=["notes"]
        )
    )
    assert history["notes"]["writes"]


def test_deleting_leaves_no_record_behind(store: Store) -> None:
    saver, _, _ = noted(store, 3)
    put(saver, {"configurable": {"thread_id": "t2", "checkpoint_ns": ""}}, x=1)
    saver.delete_thread("t2")
    saver.delete_for_runs(["run0", "run1", "run2"])
    spaces = ("checkpoints", "values", "writes", "runs")
    assert {space: store.records.list(f"langgraph.{space}") for space in spaces} == {
        space: [] for space in spaces
    }


def test_unknown_strategies_are_refused(store: Store) -> None:
    with pytest.raises(InputError, match='"keep_latest" or "delete"'):
        LongMemSaver(store).prune(["t"], strategy="guess")


def test_the_last_reply_of_each_branch_is_found_however_deep() -> None:
    def reply(branch: str, turn: int) -> AIMessage:
        details = {"model_provider": "longmem", "memory": "", "branch": branch, "turn": turn}
        return AIMessage("ok", response_metadata=details)

    value = {"a": [reply("", 1), (reply("", 3), {"b": reply("~0123abcd", 5)})], "c": "text"}
    assert replies_in(value) == [("", "", 3), ("", "~0123abcd", 5)]
    assert replies_in(AIMessage("of another model")) == []
