"""Conformance: finding turns by their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longmem.store import SessionHandle
from longmem.stores.cases import MakeStore, case, closing
from longmem.stores.samples import sample_commit, sample_info


def say(handle: SessionHandle, *texts: str) -> None:
    """Commit one turn per text."""
    commit = sample_commit(handle.info, [2] * len(texts))
    turns = [replace(turn, text=text) for turn, text in zip(commit.turns, texts, strict=True)]
    handle.commit(replace(commit, turns=turns))


def found(handle: SessionHandle, query: str, k: int = 10) -> list[int]:
    """Indices of the turns a search finds, the best first; checks the order of the scores."""
    hits = handle.search(query, k)
    scores = [score for _, score, _ in hits]
    assert scores == sorted(scores, reverse=True)
    assert all(score > 0 for score in scores)
    return [index for index, _, _ in hits]


@case
def turns_are_found_by_their_words(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        assert handle.search("gate", 3) == []
        say(handle, "The gate code is 7391.", "I will remember the gate.")
        say(handle, "What is for lunch?", "Soup, and the usual bread, the one with seeds.")
        assert found(handle, "gate code") == [0, 1]
        assert found(handle, "GATE", 1) == [1]  # the shorter of two, said once each
        assert found(handle, "7391") == [0]
        assert found(handle, "7391 lunch nothing") in ([0, 2], [2, 0])
        assert found(handle, "gate", 0) == []
        assert found(handle, "elephant") == []
        ((_, _, snippet),) = handle.search("soup", 3)
        assert snippet == "Soup, and the usual bread, the one with seeds."


@case
def a_snippet_is_cut_around_the_first_hit(make_store: MakeStore) -> None:
    with make_store() as store:
        handle = store.create(sample_info())
        say(handle, "before " * 200 + "needle " + "behind " * 200)
        ((_, _, snippet),) = handle.search("needle", 1)
        assert "needle" in snippet
        assert snippet[0] == snippet[-1] == "…"
        assert len(snippet) < 250


@case
def any_text_is_a_query(make_store: MakeStore) -> None:
    queries: Sequence[str] = [
        "", " ", '"', "'", "*", "a*", "NEAR(a b)", "a AND", "OR", "NOT x", "text:a", "-", "(", "{",
        'a"b', "^a", "a:b", ";--", "\x00", "x\x00y", "🍵", "é" * 5_000, "w " * 5_000, "\ud800",
    ]  # fmt: skip
    with make_store() as store:
        handle = store.create(sample_info())
        say(handle, "naïve 茶 a or b and near")
        for query in queries:
            handle.search(query, 5)
        assert found(handle, "NAIVE") == [0]
        assert found(handle, "naïve") == [0]
        assert found(handle, "茶") == [0]
        assert found(handle, "NEAR(") == [0]


@case
def only_turns_the_session_holds_are_found(make_store: MakeStore) -> None:
    with make_store() as store:
        alice, bob = store.create(sample_info("alice")), store.create(sample_info("bob"))
        say(alice, "apples are red", "apples are green")
        say(bob, "pears are yellow")
        alone = alice.search("apples", 5)
        say(bob, "no apples here, no apples at all")
        assert alice.search("apples", 5) == alone, "a score tells what another session holds"
        assert found(alice, "pears") == []
        say(alice, "and plums are blue")
        fork = store.fork("alice", sample_info("carol"), 1)
        say(fork, "figs")
        assert sorted(found(fork, "apples plums figs")) == [0, 1, 2]
        alice.rollback(1)
        assert found(alice, "plums") == []
        say(alice, "plums again")
        assert found(alice, "plums") == [2]
        staged = store.stage(alice, sample_info(), 1)
        say(staged, "cherries")
        assert found(alice, "cherries") == []
        store.publish(alice, staged)
        assert found(alice, "cherries") == [2]
        assert found(alice, "plums") == []
        assert found(fork, "figs") == [2]
        bob.close()
        store.erase("bob")
        assert sorted(found(alice, "apples")) == [0, 1]
        with closing(store.create(sample_info("bob"))) as again:
            assert found(again, "pears apples") == []
        assert store.verify() == []
