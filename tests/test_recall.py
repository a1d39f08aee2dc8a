"""nano answers from the memory what its window has long lost; docs/performance.md has the figures."""

from __future__ import annotations

import pytest

from longmem import Engine
from longmem.bench.methods import methods
from longmem.bench.recall import Plan, measure
from longmem.bench.tasks import get_task


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine.nano()


def test_facts_told_thousands_of_tokens_ago_are_recalled_through_the_memory_only(nano):
    both = methods(nano.config, ["longmem", "streaming-llm"])
    run = measure(nano, Plan([get_task("conversation")], [6_000], [20, 21, 22], both))
    memory, window = (cell.score for cell in run.cells)
    assert memory.total == window.total == 36
    assert memory.value >= 0.9, str(memory)
    assert window.value < 0.3, str(window)
    assert run.cells[0].found.value >= 0.9 and run.cells[1].found is None


def test_a_pass_key_is_found_at_every_depth(nano):
    one = methods(nano.config, ["longmem"])
    run = measure(nano, Plan([get_task("passkey")], [10_000], [0], one))
    wrong = [answer.question.depth for answer in run.cells[0].answers if not answer.right]
    assert len(run.cells[0].answers) == 11 and wrong == []


def test_the_reason_for_a_reply_is_the_turn_that_told_the_fact(nano):
    with nano.session("a") as session:
        session.add([("user", "The gate code of Clara is 482913."), ("assistant", "Noted.")])
        session.add([("user", f"It was a long day, the {i}th of many.") for i in range(60)])
        reply = session.ask("What is the gate code of Clara?", commit=False)
    assert reply.text == "482913." and reply.recalled[0].turn.index == 0
