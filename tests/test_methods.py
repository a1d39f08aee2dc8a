"""Every method that can be chosen keeps what the memory promises: cuts, rewinds, packing, resume."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import SMALL as NANO_SMALL
from conftest import chatter
from test_resume import probe_logits
from tiny import (
    attached,
    new_memory,
    qwen3,
    read,
    read_in_passes,
    tokens,
    whole_history_logits,
)

from longmem import ConfigError, Engine, MemoryConfig, UnsupportedModelError
from longmem.attention import forward
from longmem.config import Compressive
from longmem.feeding import Feed
from longmem.memory import ForwardPass, ReadSpan
from longmem.presets import NAMES
from longmem.stores import SQLiteStore

SMALL = MemoryConfig(
    n_init=4, n_local=24, block_size=8, topk=3, repr_topk=2, lookup_span=16, stride=4
)
TWO_LEVELS = {
    "two_level_above": 0, "two_level_shelf": 4, "two_level_group": 3, "two_level_probe": 2
}  # fmt: skip
METHODS = {
    "per KV head": {"selection": "kv_head"},
    "per KV head, one look-up layer": {"selection": "kv_head", "lookup_layers": (1,)},
    "per KV head, ordered": {"selection": "kv_head", "far_positions": "ordered"},
    "all blocks": {"lookup": "all"},
    "all blocks, limited": {"lookup": "all", "max_blocks": 5},
    "bounds": {"scorer": "bounds"},
    "bounds per KV head, limited": {"scorer": "bounds", "selection": "kv_head", "max_blocks": 6},
    "sub-blocks": {"scorer": "sub_block"},
    "representatives by logits": {"scorer": "representative", "repr_by": "logits"},
    "neighbours": {"contiguity": 2},
    "limited": {"max_blocks": 5},
    "limited, one look-up layer": {"max_blocks": 5, "lookup_layers": (1,)},
    "few tokens": {"topk_tokens": 9},
    "few tokens of all": {"lookup": "all", "topk_tokens": 9, "pool_tokens": 3},
    "few tokens per KV head": {"selection": "kv_head", "topk_tokens": 9},
    "turns": {"block_boundaries": "turn", "min_block": 4},
    "two levels": TWO_LEVELS,
    "two levels per KV head, limited": {**TWO_LEVELS, "selection": "kv_head", "max_blocks": 14},
    "bf16": {"codec": "bf16", "lookup_layers": (1,)},
    "int8, turns": {"codec": "int8", "block_boundaries": "turn", "min_block": 4},
    "int4": {"codec": "int4"},
    "int4 of all": {"codec": "int4", "lookup": "all"},
    "slots": {"device_bytes": 2**18, "host_bytes": 0},
    "slots per KV head, int8": {"device_bytes": 2**20, "selection": "kv_head", "codec": "int8"},
}


@pytest.fixture(scope="module")
def routed():
    return attached(qwen3())


@pytest.fixture(params=METHODS, name="config")
def method(request) -> MemoryConfig:
    return SMALL.replace(**METHODS[request.param])


def test_the_length_of_a_forward_pass_does_not_change_the_result(routed, config):
    model, info = routed
    ids = tokens(200)
    short, long = new_memory(info, config), new_memory(info, config)
    a = read_in_passes(model, short, ids, span=16, spans_per_pass=1)
    b = read_in_passes(model, long, ids, span=16, spans_per_pass=7)
    assert (a - b).abs().max() < 1e-4


def test_a_span_read_token_by_token_equals_the_span_read_at_once(routed, config):
    model, info = routed
    history, reply = tokens(120), tokens(9, seed=4)
    stepwise, at_once = new_memory(info, config), new_memory(info, config)
    for memory in (stepwise, at_once):
        read_in_passes(model, memory, history, span=16, spans_per_pass=1)
    a = torch.cat(
        [read(model, stepwise, [t], [ReadSpan(1, int(i == 0))]) for i, t in enumerate(reply)]
    )
    b = read(model, at_once, reply, [ReadSpan(len(reply), 1)])
    assert (a - b).abs().max() < 1e-4


def test_rewinding_is_bit_exact(routed, config):
    model, info = routed
    memory, straight = new_memory(info, config), new_memory(info, config)
    for m in (memory, straight):
        read_in_passes(model, m, tokens(90), span=15, spans_per_pass=1)
    for extra in (1, 10, 300):
        mark = memory.mark()
        read_in_passes(model, memory, tokens(extra, seed=9), span=16, spans_per_pass=2)
        memory.rewind(mark)
    a = read_in_passes(model, memory, tokens(70, seed=5), span=16, spans_per_pass=1)
    b = read_in_passes(model, straight, tokens(70, seed=5), span=16, spans_per_pass=1)
    assert torch.equal(a, b)


def test_packed_sessions_equal_each_alone(routed, config):
    model, info = routed
    streams = [tokens(130, seed) for seed in (1, 2)]
    together = [new_memory(info, config) for _ in streams]
    alone = [new_memory(info, config) for _ in streams]
    for at in range(0, 130, 13):
        span = [ReadSpan(13, 13)]
        run = ForwardPass([(memory, memory.prepare(span)) for memory in together])
        ids = torch.tensor([[t for s in streams for t in s[at : at + 13]]])
        packed = forward(model, ids, run, torch.arange(26))
        run.finish()
        expected = [
            read(model, m, s[at : at + 13], span) for m, s in zip(alone, streams, strict=True)
        ]
        assert (packed - torch.cat(expected)).abs().max() < 1e-5


RESUMED = {
    **METHODS,
    "surprise": {"block_boundaries": "surprise", "min_block": 3, "surprise_window": 16},
    "surprise, refined": {"block_boundaries": "surprise", "min_block": 3, "refine": "modularity"},
    "queries that differ": {"recycling": "dynamic", "stride": 2, "similarity": 0.9},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_session_goes_on_with_bit_equal_logits(tmp_path, engine, name):
    config = NANO_SMALL.replace(**RESUMED[name])
    with SQLiteStore(tmp_path / "s") as store:
        before = Engine(engine.model, engine.tokenizer, config)
        with before.session("a", store=store) as session:
            session.add(chatter(6))
            session.ask("What is the code?", max_new_tokens=7)
            session.add(chatter(4))
            session.ask("And what is the other code?", max_new_tokens=5)
            live = probe_logits(before, session)
        after = Engine(engine.model, engine.tokenizer, config)
        with after.session("a", store=store) as session:
            assert after.tokens_read == 0
            assert torch.equal(probe_logits(after, session), live)


def test_looking_all_blocks_up_equals_the_whole_history_at_capped_distance(routed):
    model, info = routed
    ids = tokens(150)
    expected = whole_history_logits(model, info, ids, SMALL.n_local)
    memory = new_memory(info, SMALL.replace(lookup="all", topk=0))
    assert (read_in_passes(model, memory, ids, 16, 2) - expected).abs().max() < 1e-4


def test_per_head_selection_of_every_block_equals_the_whole_history(routed):
    model, info = routed
    ids = tokens(150)
    expected = whole_history_logits(model, info, ids, SMALL.n_local)
    memory = new_memory(info, SMALL.replace(selection="kv_head", topk=100))
    assert (read_in_passes(model, memory, ids, 16, 2) - expected).abs().max() < 1e-4


def test_per_head_selection_gives_heads_blocks_of_their_own(routed):
    model, info = routed
    memory = new_memory(info, SMALL.replace(selection="kv_head"))
    read_in_passes(model, memory, tokens(200), 16, 1)
    one, other = memory.full_layers[0].working_set.stands_for
    assert len(one) == len(other) == 3 and set(one) != set(other)


@pytest.mark.parametrize("refine", ["none", "modularity", "conductance"])
def test_surprise_boundaries_do_not_depend_on_how_the_stream_is_cut(refine):
    engine = Engine.nano(
        NANO_SMALL.replace(
            block_boundaries="surprise", min_block=3, surprise_window=16, refine=refine
        )
    )
    said = " ".join(text for _, text in chatter(8))
    ids = engine.chat.turn_ids("user", said, previous=None)
    edges, logits = [], []
    for size in (1, 5, engine.spans(1000)[0].tokens):
        memory = engine.new_memory()
        for at in range(0, len(ids), size):
            part = ids[at : at + size]
            spans = [ReadSpan(1, 1) for _ in part]
            (fed,) = engine.forward([Feed(memory, part, spans, [0] if at == 0 else [])])
        edges.append(memory.table.edges)
        logits.append(fed.logits)
        sizes = torch.tensor(memory.table.edges).diff()
        assert sizes.min() >= 3 and sizes.max() <= NANO_SMALL.block_size
    assert edges[0] == edges[1] == edges[2] and len(edges[0]) > 8
    assert (logits[0] - logits[2]).abs().max() < 1e-3


def test_a_model_with_nan_in_a_weight_is_refused(engine):
    model = copy.deepcopy(engine.model)
    name, weight = next(iter(model.named_parameters()))
    with torch.no_grad():
        weight[7, 3] = torch.nan
    with pytest.raises(UnsupportedModelError, match=f"weight '{name}' holds NaN"):
        Engine(model, engine.tokenizer, NANO_SMALL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stride": 0}, "stride"),
        ({"max_blocks": 2, "topk": 3}, "max_blocks = 2 is below topk"),
        ({"compressive": {"decay": 1.5}}, "decay"),
        ({"compressive": {"rule": "delta", "decay": 0.9}}, "grows without bound"),
        ({"window": "segment", "topk": 0, "block_boundaries": "surprise"}, "has no blocks"),
        ({"compressive": {"decay": -0.1}}, "decay"),
        ({"window": "segment", "topk": 1}, "has no blocks"),
        ({"block_boundaries": "surprise", "n_local": 8, "block_size": 8}, "n_local > block_size"),
        ({"min_block": 9, "block_size": 8}, "min_block = 9 is above"),
        ({"pool_tokens": 4}, "even"),
        ({"lookup": "all", "far_positions": "ordered"}, "far_positions"),
        ({"recycling": 3}, "recycling"),
        ({"compressive": {"mix": "lse"}}, 'mix="lse" holds what a block limit drops'),
        ({"compressive": {"gates": ""}}, "gates is an empty path"),
        ({"topk": 0, "contiguity": 2}, "contiguity = 2 adds neighbours"),
        ({"refine": "modularity"}, "moves boundaries of surprise"),
        ({"surprise_gamma": float("inf")}, "surprise_gamma: .*finite"),
        ({"lookup_layers": (-1,)}, "ascending layer numbers"),
        ({"stride": True}, "stride: it is no switch"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(settings, message):
    with pytest.raises(ConfigError, match=message):
        MemoryConfig(**settings)


@pytest.mark.parametrize("name", ["scorer", "recycling"])
def test_a_method_of_an_unknown_name_is_refused_with_the_known_ones(engine, name):
    with pytest.raises(ConfigError, match="choose one of"):
        Engine(engine.model, engine.tokenizer, NANO_SMALL.replace(**{name: "wizard"}))


def test_settings_of_the_compressive_memory_are_refused_alike():
    with pytest.raises(ConfigError, match=r"Compressive.decay: .*given: 2"):
        Compressive(decay=2)


def test_a_refused_setting_inside_another_is_told_once():
    with pytest.raises(ConfigError) as refused:
        MemoryConfig(compressive={"decay": 2})
    assert str(refused.value).count("given") == 1 and "(given: 2)" in str(refused.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"lookup": "all", "max_blocks": 4},
        {"compressive": {"mix": "lse"}, "max_blocks": 16},
        {"compressive": {"mix": "lse"}, "topk": 0},
        {"lookup": "all", "topk": 0, "contiguity": 2},
    ],
)
def test_settings_that_only_look_as_if_they_disagreed_are_taken(settings):
    assert MemoryConfig(**settings).max_blocks == settings.get("max_blocks")


def test_a_preset_keeps_its_own_rule_when_gates_are_given():
    for given in ({"gates": "gates.safetensors"}, Compressive(gates="gates.safetensors")):
        config = MemoryConfig.preset("infini", compressive=given)
        assert config.compressive.rule == "delta_literal"
        assert config.compressive.gates == "gates.safetensors"
    changed = MemoryConfig.preset("infini", compressive=Compressive(rule="linear"))
    assert changed.compressive.rule == "linear"


def test_segment_tokens_do_not_decide_where_look_ups_happen(engine):
    short = Engine(engine.model, engine.tokenizer, NANO_SMALL, segment_tokens=8)
    assert short.spans(300) == engine.spans(300)
    with pytest.raises(ConfigError, match="segment_tokens is 0"):
        Engine(engine.model, engine.tokenizer, NANO_SMALL, segment_tokens=0)


def test_presets_are_settings_and_unknown_ones_are_refused():
    assert MemoryConfig.preset("longmem") == MemoryConfig()
    assert MemoryConfig.preset("infllm", topk=3).topk == 3
    for name in NAMES:
        MemoryConfig.preset(name)
    for unknown in ("magic", ["infllm"]):
        with pytest.raises(ConfigError, match="choose one of longmem, infllm"):
            MemoryConfig.preset(unknown)
