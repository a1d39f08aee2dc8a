"""Conformance: adapters' records."""

from __future__ import annotations

from longmem.errors import InputError, SessionNotFoundError
from longmem.stores.cases import MakeStore, case, raises


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
