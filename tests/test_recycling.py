"""When a reply looks blocks up again: the policies alone, then in whole sessions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import SMALL, chatter
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import SuppressTokensLogitsProcessor

from longmem import ConfigError, Engine, MemoryConfig, Reply, Session
from longmem.feeding import Feed, Segment
from longmem.memory import ReadSpan
from longmem.recycling import LookupCosts, RefreshPolicy, costs_of, get_policy, register
from longmem.recycling.costs import weight_bytes
from longmem.stores import InMemoryStore, SQLiteStore

CONFIG = SMALL.replace(lookup_layers=(1, 2))
Remake = Callable[..., Engine]


@pytest.fixture
def remake(engine: Engine) -> Remake:
    """The bundled model under other settings."""
    return lambda **changes: Engine(engine.model, engine.tokenizer, CONFIG.replace(**changes))


def policy(step: int = 100, look_up: int = 10, **settings: object) -> RefreshPolicy:
    config = MemoryConfig(**settings)
    return get_policy(config.recycling)(config, lambda: LookupCosts(step, look_up))


def due(policy: RefreshPolicy, steps: int) -> list[int]:
    return [step for step in range(steps) if policy.due()]


def reply(engine: Engine) -> Reply:
    with engine.session("a") as session:
        return filled(session)


def filled(session: Session) -> Reply:
    """A reply of 24 tokens in a session with many closed blocks."""
    session.add(chatter(5))
    return babble(session, 24)


def babble(session: Session, tokens: int) -> Reply:
    """A reply of so many tokens: end tokens are never drawn."""
    ends = sorted(session._conversation.engine.chat.eos_ids)
    return session.ask(
        "What now?",
        max_new_tokens=tokens,
        temperature=1.0,
        seed=3,
        logits_processor=LogitsProcessorList([SuppressTokensLogitsProcessor(ends)]),
    )


def logits_after(engine: Engine, session: Session) -> Tensor:
    """Logits of a fixed continuation, which is forgotten again: a look-up, then recycled steps."""
    memory = session._conversation.memory
    mark, rows = memory.mark(), []
    for i, token in enumerate(engine.tokenizer("and then she said").input_ids):
        (fed,) = engine.forward([Feed(memory, [token], [ReadSpan(1, int(i == 0))])])
        rows.append(fed.logits)
    memory.rewind(mark)
    return torch.stack(rows)


def test_a_fixed_stride_is_due_at_its_multiples():
    assert due(policy(recycling="fixed", stride=5), 16) == [0, 5, 10, 15]
    assert due(policy(recycling="fixed", stride=1), 4) == [0, 1, 2, 3]


def test_a_layer_looks_up_when_its_mean_query_has_turned_away_from_that_of_its_last_look_up():
    dynamic = policy(recycling="dynamic", similarity=0.8)
    near, away = torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.8])  # cosines 0.894 and 0.781
    heads = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]]])  # their mean is [1, 0]
    assert dynamic.decide(3, heads)
    assert not dynamic.decide(3, 2 * near.expand(2, 1, 2))  # length does not matter
    assert dynamic.decide(3, away.expand(2, 1, 2))
    assert not dynamic.decide(3, near.expand(2, 1, 2))  # compared with the look-up, not the first
    assert dynamic.decide(7, near.expand(2, 1, 2))  # every layer has its own


def test_dynamic_checks_at_every_stride():
    assert due(policy(recycling="dynamic", stride=3), 8) == [0, 3, 6]


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3])
@pytest.mark.parametrize(("step", "look_up"), [(1000, 10), (100, 700), (10, 10), (0, 5)])
def test_a_budget_spends_its_share_and_no_more(share, step, look_up):
    budget = policy(step, look_up, recycling="budget", lookup_share=share)
    spent, steps = 0, 0
    for _ in range(2000):
        was_due = budget.due()
        steps, spent = steps + 1, spent + look_up * was_due
        if was_due:
            assert steps == 1 or spent <= share * (steps * step + spent)
        else:
            assert spent + look_up > share * (steps * step + spent + look_up)


def test_a_share_of_everything_looks_up_at_every_step():
    assert due(policy(recycling="budget", lookup_share=1.0), 5) == [0, 1, 2, 3, 4]


def test_an_unknown_policy_is_refused_with_the_list_of_known_ones(remake):
    with pytest.raises(ConfigError, match="budget, dynamic, fixed"):
        get_policy("fixd")
    with pytest.raises(ConfigError, match="fixd"):
        remake(recycling="fixd")


class Once:
    """A policy of a third party: the first step only."""

    def __init__(self, config: MemoryConfig, costs: object) -> None:
        self.steps = 0

    def due(self) -> bool:
        self.steps += 1
        return self.steps == 1

    def decide(self, layer: int, q: Tensor) -> bool:
        return True


def test_a_registered_policy_serves_under_its_name(remake):
    register("once", Once)
    usage = reply(remake(recycling="once")).usage
    assert (usage.refreshes, usage.lookups) == (1, 2)


def test_looking_up_at_every_step_equals_a_session_that_never_recycles(remake):
    engine = remake(stride=1)
    with engine.session("a") as session:
        usage = filled(session).usage
        assert usage.recycled == usage.lookups_saved == 0 and usage.lookups == 2 * usage.refreshes
        expected = logits_after(engine, session)
        memory = session._conversation.memory
        fresh = engine.new_memory(memory.table.n_init)
        for turn in session._conversation.ledger.history.turns():
            spans = [ReadSpan(*span) for span in turn.spans]
            if turn.index == 11:
                closing = spans[-1].tokens - 1  # read on the last look-up
                assert [s.tokens for s in spans if s.voters == 1][:-1] == [1] * (len(spans) - 2)
                spans = [*spans[:-1], ReadSpan(1, 1), *[ReadSpan(1, 0)] * closing]
            engine.read(fresh, [Segment(turn.ids, spans)])
        session._conversation.memory = fresh
        torch.testing.assert_close(logits_after(engine, session), expected, atol=1e-4, rtol=0)


def test_a_dynamic_policy_that_always_refreshes_equals_stride_one(remake):
    always = reply(remake(recycling="dynamic", stride=1, similarity=1.0))
    fixed = reply(remake(stride=1))
    assert (always.text, always.usage) == (fixed.text, fixed.usage)


def test_a_dynamic_policy_that_never_refreshes_looks_up_at_the_first_step_only(remake):
    usage = reply(remake(recycling="dynamic", stride=1, similarity=-1.0)).usage
    assert (usage.refreshes, usage.lookups) == (1, 2)
    assert usage.recycled == usage.generated - 1


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 5},
        {"recycling": "dynamic", "stride": 2, "similarity": 0.8},
        {"recycling": "budget", "lookup_share": 0.2},
        {"recycling": "dynamic", "stride": 2, "topk_tokens": 20},
    ],
)
def test_usage_adds_up_and_text_is_the_same_every_time(remake, settings):
    engine = remake(**settings)
    first, second = reply(engine), reply(engine)
    assert (first.text, first.usage) == (second.text, second.usage)
    usage = first.usage
    steps = usage.refreshes + usage.recycled
    assert steps == usage.generated  # the last sampled token is read with the closing ids
    assert usage.lookups + usage.lookups_saved == 2 * steps
    assert usage.refreshes <= usage.lookups <= 2 * usage.refreshes


def test_without_blocks_to_look_up_nothing_counts_as_a_look_up(remake):
    usage = reply(remake(topk=0, lookup_layers="all")).usage
    assert usage.lookups == usage.lookups_saved == usage.refreshes == 0
    assert usage.recycled == usage.generated


def test_a_budget_keeps_look_ups_below_their_share_of_counted_bytes(remake):
    engine = remake(recycling="budget", lookup_share=0.1)
    with engine.session("a") as session:
        session.add(chatter(5))
        usage = babble(session, 60).usage
        costs = costs_of(engine, session._conversation.memory)
    spent = usage.refreshes * costs.look_up
    steps = usage.refreshes + usage.recycled
    assert usage.refreshes > 1
    assert spent <= 0.1 * (steps * costs.step + spent)


def test_costs_are_counted_from_shapes_and_survive_a_resume(remake):
    engine, store = remake(topk=2), InMemoryStore()
    with engine.session("a", store=store) as session:
        session.add(chatter(5))
        before = costs_of(engine, session._conversation.memory)
    with engine.session("a", store=store) as session:
        memory = session._conversation.memory
        costs = costs_of(engine, memory)
    assert costs == before
    weights = sum(p.nbytes for p in engine.model.parameters())  # embeddings serve as output, too
    assert weight_bytes(engine.model) == weights
    per_token = memory.layers[0].spec.bytes_per_token
    attended = memory.table.n_init + memory.window_tokens
    assert costs.step == weights + per_token * (attended * len(memory.layers) + 3 * 2 * 16)
    rows = sum(min(4, b - a) for a, b in map(memory.table.span, range(memory.n_blocks)))
    assert costs.look_up == 3 * 2 * 16 * per_token + 2 * rows * per_token // 2


def test_where_all_blocks_are_attended_to_a_look_up_costs_what_recycled_steps_leave_out(remake):
    all_of_them, few = remake(lookup="all"), remake(lookup="all", topk_tokens=10)
    with all_of_them.session("a") as whole, few.session("a") as recycled:
        whole.add(chatter(5))
        recycled.add(chatter(5))
        dear = costs_of(all_of_them, whole._conversation.memory)
        cheap = costs_of(few, recycled._conversation.memory)
    assert dear.look_up == 0
    assert cheap.step == weight_bytes(few.model) + 4 * 10 * 1024  # layers, tokens, bytes of each
    assert cheap.step + cheap.look_up == dear.step


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path) -> Iterator[InMemoryStore | SQLiteStore]:
    made = InMemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "s")
    with made as store:
        yield store


@pytest.mark.parametrize("topk_tokens", [None, 12])
def test_a_rebuild_reads_with_the_look_ups_that_each_layer_made(remake, store, topk_tokens):
    settings = {"recycling": "dynamic", "stride": 1, "similarity": 0.8, "topk_tokens": topk_tokens}
    engine = remake(**settings)
    with engine.session("a", store=store) as session:
        usage = filled(session).usage
        expected = logits_after(engine, session)
        spans = [turn.spans for turn in session._conversation.ledger.history.turns()]
    layers = {span[2] for span in spans[-1] if len(span) == 3}
    assert layers & {(1,), (2,)}, "the layers were meant to differ"
    assert usage.lookups < 2 * usage.refreshes
    with engine.session("a", store=store, rebuild=True) as session:
        assert [turn.spans for turn in session._conversation.ledger.history.turns()] == spans
        torch.testing.assert_close(logits_after(engine, session), expected, atol=1e-4, rtol=0)
        babble(session, 20)
    with engine.session(
        "a", store=store
    ) as session:  # layers had closed their blocks at other steps
        babble(session, 20)
        expected = logits_after(engine, session)
    with engine.session("a", store=store) as session:
        assert torch.equal(logits_after(engine, session), expected)


def test_a_rebuild_for_other_look_up_layers_looks_up_in_all_of_them(remake, store):
    settings = {"recycling": "dynamic", "stride": 1}
    with remake(**settings).session("a", store=store) as session:
        filled(session)
        spans = session._conversation.ledger.history.turns()[-1].spans
    other = remake(**settings, lookup_layers=(0, 2))
    with other.session("a", store=store, rebuild=True) as session:
        rebuilt = session._conversation.ledger.history.turns()[-1].spans
    assert rebuilt == tuple(span[:2] for span in spans) != spans


@pytest.mark.parametrize("lookup", ["topk", "all"])
def test_recycled_steps_over_all_tokens_equal_those_over_the_whole_working_set(remake, lookup):
    whole, most = remake(lookup=lookup), remake(lookup=lookup, topk_tokens=2000)
    found = []
    for engine in (whole, most):
        with engine.session("a") as session:
            said = filled(session)
            found.append((said.text, said.usage, logits_after(engine, session)))
    (text, usage, logits), (other_text, other_usage, other_logits) = found
    assert usage.recycled > 0 and (text, usage) == (other_text, other_usage)
    torch.testing.assert_close(logits, other_logits, atol=1e-4, rtol=0)


def test_few_recycled_tokens_change_what_is_attended_to(remake):
    whole, few = remake(stride=8), remake(stride=8, topk_tokens=4)
    logits = []
    for engine in (whole, few):
        with engine.session("a") as session:
            session.add(chatter(5))
            logits.append(logits_after(engine, session))
    torch.testing.assert_close(logits[0][0], logits[1][0], atol=1e-5, rtol=0)  # the refresh
    assert (logits[0][1:] - logits[1][1:]).abs().max() > 0.1
