"""Reasoning: never in `Reply.text`; in memory only if `keep_reasoning`."""

from __future__ import annotations

import pytest
import torch
from conftest import SMALL, chatter
from test_resume import probe_logits
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from longmem import Engine
from longmem.stores import InMemoryStore

THOUGHT = "<think>\nThe lake, I am sure.\n</think>\n\nIt was the lake."


class Script(LogitsProcessor):
    """Lets the model say the given ids, whatever it would rather say."""

    def __init__(self, ids):
        self.ids = list(ids)

    def __call__(self, input_ids, scores):
        scores[:] = -torch.inf
        scores[0, self.ids.pop(0)] = 0.0
        return scores


def scripted(engine, text):
    ids = engine.tokenizer(text, add_special_tokens=False)["input_ids"]
    return LogitsProcessorList([Script([*ids, engine.tokenizer.eos_token_id])])


@pytest.mark.parametrize("keep", [True, False])
def test_reasoning_is_kept_in_memory_only_if_configured(engine, keep):
    thinking = Engine(engine.model, engine.tokenizer, SMALL.replace(keep_reasoning=keep))
    with InMemoryStore() as store, thinking.session("a", store=store) as session:
        session.add(chatter(6))
        script = scripted(thinking, THOUGHT)
        reply = session.ask("Where?", logits_processor=script, max_new_tokens=64)
        assert reply.text == "It was the lake." and reply.reasoning == "The lake, I am sure."
        assert session.turns()[-1].extra["reasoning"] == reply.reasoning
        read = thinking.tokenizer.decode(session._conversation.ledger.history.turns()[-1].ids)
        assert ("The lake, I am sure" in read) == keep
        with thinking.session("b") as plain:
            plain.add(chatter(6))
            plain.add([("user", "Where?"), ("assistant", "It was the lake.")])
            difference = probe_logits(thinking, session) - probe_logits(thinking, plain)
            assert (difference.abs().max() < 1e-4) == (not keep)


def test_reasoning_longer_than_the_window_is_forgotten_without_harm(engine):
    brief = Engine(engine.model, engine.tokenizer, SMALL.replace(keep_reasoning=False))
    long = "<think>\n" + "The lake, I am sure. " * 40 + "\n</think>\n\nIt was the lake."
    with brief.session("a") as session:
        session.add(chatter(6))
        script = scripted(brief, long)
        reply = session.ask("Where?", logits_processor=script, max_new_tokens=600)
        assert reply.text == "It was the lake." and reply.recalled
        assert session.stats().tokens == session._conversation.memory.n_tokens


def test_processors_see_the_window_and_the_reply(engine):
    seen = []

    class Watch(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(input_ids[0].tolist())
            return scores

    with engine.session("a") as session:
        session.add(chatter(10))
        session.ask("Well?", logits_processor=LogitsProcessorList([Watch()]), max_new_tokens=3)
        ids = [i for t in session._conversation.ledger.history.turns() for i in t.ids]
    first = seen[0]
    assert len(first) > SMALL.n_local
    at = "".join(f"{i} " for i in ids).find("".join(f"{i} " for i in first))
    assert at >= 0 and [len(s) for s in seen] == [len(first) + i for i in range(len(seen))]


def test_stopping_criteria_end_the_reply(engine):
    class AfterTwo(StoppingCriteria):
        def __init__(self):
            self.left = 2

        def __call__(self, input_ids, scores, **kwargs):
            self.left -= 1
            return torch.tensor([self.left == 0])

    with engine.session("a") as session:
        reply = session.ask(
            "Tell me of your day.",
            stopping_criteria=StoppingCriteriaList([AfterTwo()]),
            eos_token_id=(),
            max_new_tokens=9,
        )
    assert reply.usage.generated == 2 and reply.finish_reason == "stop"
