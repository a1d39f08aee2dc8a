"""Conformance: adapters' records."""

from __future__ import annotations

from typing import Any

from longmem.errors import InputError, SessionNotFoundError
from longmem.store import Record
from longmem.stores.cases import MakeStore, case, raises
from longmem.stores.samples import sample_info


@case
def records_are_put_replaced_and_deleted(make_store: MakeStore) -> None:
    value = {"list": [1, 2.5, None, True], "text": "naïve 茶"}
    with make_store() as store:
        records = store.records
        assert records.get("space", "key") is None
        records.put("space", "key", 1)
        records.put("space", "key", value)
        value["text"] = "changed by the caller"
        assert records.get("space", "key") == {**value, "text": "naïve 茶"}
        assert records.get("other", "key") is None
        assert records.delete("space", "key") is True
        assert records.delete("space", "key") is False
        assert records.get("space", "key") is None
        with raises(InputError):
            records.put("space", "key", {1, 2})
        with raises(SessionNotFoundError):
            records.put("space", "key", 1, session="nobody")
        assert records.list("space") == []


@case
def records_are_listed_by_literal_prefix_in_order(make_store: MakeStore) -> None:
    keys = ["", "a", "a%", "a_b", "ab", "aé", "b", "A", "a\U0010ffff", "b%"]
    with make_store() as store:
        for key in keys:
            store.records.put("space", key, key)
        store.records.put("other", "a", "elsewhere")
        for prefix in ["", "a", "a%", "a_", "A", "z", "b%"]:
            expected = sorted(key for key in keys if key.startswith(prefix))
            assert store.records.list("space", prefix) == [(key, key) for key in expected]


@case
def records_are_listed_page_by_page(make_store: MakeStore) -> None:
    keys = ["a/1", "a/2", "a/3", "a/4", "b/1", "a", "a/\U0010ffff"]
    with make_store() as store:
        records = store.records
        for key in keys:
            records.put("space", key, key)
        mine = sorted(key for key in keys if key.startswith("a/"))

        def page(**options: Any) -> list[str]:
            return [key for key, _ in records.list("space", "a/", **options)]

        assert page(limit=2) == mine[:2]
        assert page(after="a/2") == mine[2:]
        assert page(after="a/2", limit=1) == mine[2:3]
        assert page(after="a/20") == mine[2:]
        assert page(newest_first=True) == mine[::-1]
        assert page(newest_first=True, after="a/3", limit=5) == mine[1::-1]
        assert page(newest_first=True, limit=1) == mine[-1:]
        assert page(limit=0) == []
        assert [key for key, _ in records.list("space", limit=2)] == sorted(keys)[:2]
        assert [key for key, _ in records.list("space", newest_first=True)] == sorted(keys)[::-1]


@case
def several_records_change_at_once_or_not_at_all(make_store: MakeStore) -> None:
    with make_store() as store:
        records = store.records
        handle = store.create(sample_info())
        records.put("space", "old", 1)
        records.apply(
            [Record("space", "a", 1), Record("other", "b", 2), Record("space", "a", 3)],
            [("space", "old"), ("space", "never was"), ("space", "a")],
            session="alice",
        )
        assert records.list("space") == [("a", 3)]
        assert records.list("other") == [("b", 2)]
        with raises(InputError):
            records.apply([Record("space", "c", 1), Record("space", "d", {1})], [("space", "a")])
        with raises(SessionNotFoundError):
            records.apply([Record("space", "c", 1)], [("space", "a")], session="nobody")
        assert records.list("space") == [("a", 3)]
        records.apply([], [("other", "b")])
        assert records.list("other") == []
        handle.close()
        store.delete("alice")
        assert records.list("space") == []
