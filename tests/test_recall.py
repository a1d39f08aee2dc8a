"""nano answers from the memory what its window has long lost; docs/performance.md has the figures."""

from __future__ import annotations

import pytest

from longmem import Engine
from longmem.bench import passkey, recall


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine.nano()


def test_facts_told_thousands_of_tokens_ago_are_recalled_through_the_memory_only(nano):
    run = recall.measure(nano, 8_000, seeds=[20, 21, 22])
    memory, window = recall.share(run.answers), recall.share(run.window_answers)
    assert memory.total == 48
    assert memory.value >= 0.9, str(memory)
    assert window.value < 0.3, str(window)


def test_a_pass_key_is_found_at_every_depth(nano):
    runs = passkey.measure(nano, 10_000)
    assert [run.depth for run in runs if not run.found] == []


def test_the_reason_for_a_reply_is_the_turn_that_told_the_fact(nano):
    with nano.session("a") as session:
        session.add([("user", "The gate code of Clara is 482913."), ("assistant", "Noted.")])
        session.add([("user", f"It was a long day, the {i}th of many.") for i in range(60)])
        reply = session.ask("What is the gate code of Clara?", commit=False)
    assert reply.text == "482913." and reply.recalled[0].turn.index == 0
