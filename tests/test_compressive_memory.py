"""The compressive memory in the engine: gates, mixing, retention, segments, resume."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import attached, new_memory, qwen3, read, read_in_passes, tokens
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from longmem import ConfigError, Engine, MemoryConfig, nano
from longmem.attention import ModelInfo
from longmem.config import Compressive
from longmem.gate_file import load_gates, save_gates, segment_of
from longmem.memory import AttentionCall, ForwardPass, Gates, ReadSpan, SessionMemory
from longmem.ops.compressive import (
    CompressiveState,
    get_feature_map,
    read_and_fold_naive,
)
from longmem.stores import SQLiteStore

SMALL = MemoryConfig(n_init=3, n_local=12, block_size=6, topk=2, repr_topk=2)
LINEAR = Compressive(rule="linear", chunk=8)


@pytest.fixture(scope="module")
def routed():
    return attached(qwen3())


def gates(info: ModelInfo, value: float = 0.5, offset: float | None = None) -> Gates:
    """The same gate for every head."""
    shape = (len(info.layers), info.layers[0].heads)
    return Gates(torch.full(shape, value), None if offset is None else torch.full(shape, offset))


def with_gates(info: ModelInfo, config: MemoryConfig, chosen: Gates | None) -> SessionMemory:
    return SessionMemory(info.layers, config, config.n_init, gates=chosen)


def test_closed_gates_change_no_bit(routed):
    model, info = routed
    ids = tokens(90)
    without = read_in_passes(model, new_memory(info, SMALL), ids, 6, 2)
    config = SMALL.replace(compressive=LINEAR)
    for closed in (None, gates(info, 0.0)):
        assert torch.equal(
            read_in_passes(model, with_gates(info, config, closed), ids, 6, 2), without
        )


def test_open_gates_change_the_result_once_something_left_the_window(routed):
    model, info = routed
    ids = tokens(90)
    config = SMALL.replace(compressive=LINEAR)
    without = read_in_passes(model, new_memory(info, SMALL), ids, 6, 2)
    opened = read_in_passes(model, with_gates(info, config, gates(info)), ids, 6, 2)
    assert torch.equal(opened[:18], without[:18])
    assert not torch.allclose(opened[40:], without[40:], atol=1e-3)


class SegmentReference:
    """Infini-attention as the paper has it: attention inside the segment, memory of those before."""

    def __init__(self, info: ModelInfo, segment: int, settings: Compressive, gate: float) -> None:
        self._info, self._segment, self._settings, self._gate = info, segment, settings, gate

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        spec, n = self._info.layers[layer], q.shape[2]
        rotary, wide = spec.rotary, q.shape[1] // k.shape[1]
        assert rotary is not None
        angles = rotary.angles(torch.arange(n), q.dtype)
        at = torch.arange(n)
        seen = (at[:, None] >= at) & (at[:, None] // self._segment == at // self._segment)
        keys = rotary.rotate(k[0], angles).repeat_interleave(wide, 0)
        logits = rotary.rotate(q[0], angles) @ keys.mT * call.scaling
        weights = torch.softmax(logits.masked_fill(~seen, -torch.inf), -1)
        near = weights @ v[0].repeat_interleave(wide, 0)
        features = get_feature_map(self._settings.feature_map)
        state = CompressiveState.empty(spec.kv_heads, features.width(spec.dim), spec.dim)
        held, mass = read_and_fold_naive(
            q[0], k[0], v[0], state, features, chunk=self._segment, rule=self._settings.rule,
            decay=self._settings.decay,
        )  # fmt: skip
        far = held / mass.clamp(min=1e-12)[..., None]
        gate = torch.where(at < self._segment, 0.0, self._gate)[:, None]
        return ((1 - gate) * near + gate * far).transpose(0, 1)[None]


@pytest.mark.parametrize("feature_map", ["elu", "dpfp"])
@pytest.mark.parametrize(
    ("rule", "decay"),
    [("linear", 1), ("linear", 0.9), ("delta", 1), ("delta_literal", 1), ("delta_literal", 0.9)],
)
def test_segments_equal_the_papers_equations(routed, rule, feature_map, decay):
    """A layer's output to 1e-5, however the stream is cut into passes."""
    spec = routed[1].layers[0]
    torch.manual_seed(3)
    q, k, v = (torch.randn(1, h, 75, spec.dim) for h in (spec.heads, spec.kv_heads, spec.kv_heads))
    settings = Compressive(rule=rule, feature_map=feature_map, decay=decay)
    config = MemoryConfig.preset("infini", n_local=16, compressive=settings)
    call = AttentionCall(spec.scaling, None, None)
    expected = SegmentReference(routed[1], 16, settings, 0.5).attend(0, q, k, v, call)
    for n in (1, 5, 16, 75):
        memory = SessionMemory(routed[1].layers, config, 0, gates=gates(routed[1]), journal=False)
        parts = []
        for at in range(0, 75, n):
            part = slice(at, min(at + n, 75))
            run = ForwardPass([(memory, memory.prepare([ReadSpan(part.stop - at, 1)]))])
            parts.append(run.attend(0, q[:, :, part], k[:, :, part], v[:, :, part], call))
            run.finish()
        torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-5, rtol=1e-5)


def test_folding_keeps_to_an_absolute_grid(routed):
    """Blocks leave in sevens, chunks are eights; the memory is that of one fold per chunk."""
    model, info = routed
    ids = tokens(120)
    config = SMALL.replace(compressive=Compressive(rule="delta", chunk=8), block_size=7)
    memory = with_gates(info, config, gates(info))
    read_in_passes(model, memory, ids, 6, 3)
    layer = memory.layers[0]
    left = layer.local.first
    kv = memory.export().kv[0][:left].permute(1, 2, 0, 3)  # [2, H_kv, T, D]
    state = CompressiveState.empty(info.layers[0].kv_heads, 8, 8)
    read_and_fold_naive(
        torch.zeros(4, left, 8), *kv, state, get_feature_map("elu"), chunk=8, rule="delta"
    )
    assert layer.compressive.state.tokens == left // 8 * 8 > 60
    torch.testing.assert_close(layer.compressive.state.M, state.M, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.compressive.state.z, state.z, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mix", ["gate", "lse"])
@pytest.mark.parametrize("window", ["sliding", "segment"])
def test_a_rewind_brings_the_memory_back_bit_for_bit(routed, mix, window):
    model, info = routed
    ids = tokens(100)
    config = SMALL.replace(
        compressive=LINEAR.model_copy(update={"mix": mix}),
        window=window,
        topk=2 if window == "sliding" else 0,
        max_blocks=4 if window == "sliding" else None,
    )
    memory = with_gates(info, config, gates(info, offset=-1.0))
    read_in_passes(model, memory, ids[:61], 6, 2)
    mark = memory.mark()
    first = read_in_passes(model, memory, ids[61:], 6, 2)
    memory.rewind(mark)
    assert torch.equal(read_in_passes(model, memory, ids[61:], 6, 2), first)


def test_by_log_sum_exp_only_dropped_blocks_are_in_the_memory(routed):
    model, info = routed
    config = SMALL.replace(compressive=Compressive(rule="linear", mix="lse", chunk=1), max_blocks=5)
    memory = with_gates(info, config, gates(info, offset=0.0))
    read_in_passes(model, memory, tokens(90), 6, 2)
    layer = memory.full_layers[0]
    assert layer.first > 0
    edges = memory.table.edges
    assert layer.compressive.state.tokens == edges[layer.first] - edges[0]


def test_an_lse_offset_far_below_leaves_attention_alone(routed):
    model, info = routed
    ids = tokens(90)
    config = SMALL.replace(compressive=LINEAR.model_copy(update={"mix": "lse"}), max_blocks=5)
    plain = SMALL.replace(max_blocks=5)
    got = read_in_passes(model, with_gates(info, config, gates(info, offset=-60.0)), ids, 6, 2)
    without = read_in_passes(model, new_memory(info, plain), ids, 6, 2)
    torch.testing.assert_close(got, without, atol=1e-5, rtol=1e-5)


def test_mass_of_the_memory_counts_as_one_more_group(routed):
    """One dropped token in an exact feature map of two entries would count like an attended key; here:
    the share is exp(c) phi(q) z against the softmax's own denominator."""
    from longmem.memory.compressive import CompressiveMemory

    spec = routed[1].layers[0]
    chosen = gates(routed[1], offset=0.3)
    memory = CompressiveMemory(spec, Compressive(mix="lse", rule="linear"), chosen, chunk=1)
    k, v = torch.randn(2, spec.kv_heads, 5, spec.dim)
    q, out = torch.randn(2, spec.heads, 3, spec.dim)
    lse = torch.randn(spec.heads, 3)
    memory.fold(k, v)
    phi_q, phi_k = (torch.nn.functional.elu(x) + 1 for x in (q, k.repeat_interleave(2, 0)))
    mass = torch.exp(torch.tensor(0.3)) * (phi_q @ phi_k.mT)  # [H, T, 5]
    whole = lse.exp() + mass.sum(-1)
    expected = (lse.exp()[..., None] * out + mass @ v.repeat_interleave(2, 0)) / whole[..., None]
    torch.testing.assert_close(memory.mix(out, q, lse), expected, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def gate_file(tmp_path_factory) -> Path:
    engine = Engine.nano()
    path = tmp_path_factory.mktemp("gates") / "gates.safetensors"
    settings = Compressive(rule="delta", chunk=32)
    made = gates(engine.info, 0.3, -1.0)
    save_gates(path, made, engine.model, settings)
    segment = nano.memory().n_local
    save_gates(path.with_name("segment.safetensors"), made, engine.model, settings, segment)
    return path


@pytest.mark.parametrize("window", ["sliding", "segment"])
def test_a_resumed_session_has_the_same_memory(tmp_path, gate_file, window):
    """M and z are not stored: they are folded again from stored keys and values, bit for bit."""
    if window == "segment":
        gate_file = gate_file.with_name("segment.safetensors")
    settings = Compressive(rule="delta", gates=str(gate_file), chunk=32)
    config = nano.memory().replace(compressive=settings)
    if window == "segment":
        config = config.replace(window="segment", topk=0)
    turns = [
        turn
        for n in range(40, 80)
        for turn in (("user", f"My locker code is {n}{n + 1}."), ("assistant", "Noted."))
    ]
    with SQLiteStore(tmp_path / "store") as store:
        with Engine.nano(config).session("a", store=store) as session:
            session.add(turns)
            before = session._conversation.memory
            said = session.ask("What is my locker code?", commit=False, max_new_tokens=8)
        with Engine.nano(config).session("a", store=store) as session:
            after = session._conversation.memory
            for one, other in zip(before.layers, after.layers, strict=True):
                assert one.compressive.state.tokens == other.compressive.state.tokens > 100
                assert torch.equal(one.compressive.state.M, other.compressive.state.M)
                assert torch.equal(one.compressive.state.z, other.compressive.state.z)
            again = session.ask("What is my locker code?", commit=False, max_new_tokens=8)
    assert again.text == said.text


def test_a_gate_file_of_another_model_is_refused(tmp_path, routed):
    model, info = routed
    other = qwen3(seed=5)
    path = tmp_path / "gates.safetensors"
    save_gates(path, gates(info), other, LINEAR)
    with pytest.raises(ConfigError, match="other weights"):
        load_gates(path, model, info.layers, LINEAR)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "delta"}, "made for rule"),
        ({"feature_map": "dpfp"}, "made for feature_map"),
        ({"mix": "lse"}, "made for mix"),
    ],
)
def test_a_gate_file_made_for_other_settings_is_refused(tmp_path, routed, change, message):
    model, info = routed
    path = tmp_path / "gates.safetensors"
    save_gates(path, gates(info), model, LINEAR)
    with pytest.raises(ConfigError, match=message):
        load_gates(path, model, info.layers, LINEAR.model_copy(update=change))


@pytest.mark.parametrize(
    ("change", "window", "message"),
    [
        ({"chunk": 16}, "sliding", "made for chunk = '8'"),
        ({}, "segment", "made for window = 'sliding', but .* MemoryConfig.window"),
    ],
)
def test_a_gate_file_made_for_another_window_or_chunk_is_refused(
    tmp_path, routed, change, window, message
):
    model, info = routed
    path = tmp_path / "gates.safetensors"
    save_gates(path, gates(info), model, LINEAR)
    config = SMALL.replace(window=window, topk=0)
    with pytest.raises(ConfigError, match=message):
        load_gates(path, model, info.layers, LINEAR.model_copy(update=change), segment_of(config))


@pytest.mark.parametrize("named", [True, False], ids=["exported", "calibrated"])
def test_a_gate_file_from_before_windows_were_noted_still_loads(tmp_path, routed, named):
    model, info = routed
    path = tmp_path / "gates.safetensors"
    save_gates(path, gates(info), model, LINEAR)
    with safe_open(path, framework="pt") as file:
        old = {k: v for k, v in file.metadata().items() if k != "window"}
    save_file({"gate": gates(info).gate}, path, metadata=old | ({"segment": "12"} if named else {}))
    for segment in (12, None):
        assert torch.equal(
            load_gates(path, model, info.layers, LINEAR, segment).gate, gates(info).gate
        )
    if named:
        with pytest.raises(ConfigError, match="made for segment = '12'"):
            load_gates(path, model, info.layers, LINEAR, 64)


def test_a_delta_rule_whose_normaliser_stops_is_warned_of_when_gates_are_loaded(tmp_path, routed):
    model, info = routed
    path = tmp_path / "gates.safetensors"
    settings = Compressive(rule="delta", feature_map="dpfp", chunk=8)
    save_gates(path, gates(info), model, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_gates(path, model, info.layers, settings)
    save_gates(path, gates(info), model, settings, 64)
    with pytest.warns(UserWarning, match="64 tokens folded at once: .* stops growing"):
        load_gates(path, model, info.layers, settings, 64)


def test_gates_outside_their_range_and_files_that_are_none_are_refused(tmp_path, routed):
    model, info = routed
    path = tmp_path / "gates.safetensors"
    save_gates(path, gates(info, 1.5), model, LINEAR)
    with pytest.raises(ConfigError, match=r"outside \[0, 1\]"):
        load_gates(path, model, info.layers, LINEAR)
    path.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_gates(path, model, info.layers, LINEAR)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_gates(tmp_path / "missing", model, info.layers, LINEAR)


@pytest.mark.parametrize("name", ["offset", "features"])
def test_nan_in_a_gate_file_is_refused(tmp_path, routed, name):
    model, info = routed
    chosen = gates(info, offset=0.0)
    spec = info.layers[0]
    features = {i: torch.zeros(spec.kv_heads, spec.dim, spec.dim) for i in range(3)}
    chosen.offset[0, 0] = torch.nan if name == "offset" else 0
    features[1][0, 0, 0] = torch.nan if name == "features" else 0
    settings = Compressive(rule="linear", mix="lse", feature_map="learned")
    path = tmp_path / "gates.safetensors"
    save_gates(path, Gates(chosen.gate, chosen.offset, features=features), model, settings)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        load_gates(path, model, info.layers, settings)


def test_learned_features_have_to_be_in_the_gate_file(tmp_path, routed):
    model, info = routed
    settings = Compressive(rule="linear", feature_map="learned")
    path = tmp_path / "gates.safetensors"
    save_gates(path, gates(info), model, settings)
    with pytest.raises(ConfigError, match="lacks the learned feature maps"):
        load_gates(path, model, info.layers, settings)


def test_a_refused_gate_file_leaves_the_model_as_it_was(tmp_path):
    model = qwen3()
    plain = model(torch.tensor([[1, 2, 3]])).logits
    tokenizer = Engine.nano().tokenizer
    model.resize_token_embeddings(len(tokenizer))
    config = SMALL.replace(compressive=Compressive(gates=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="cannot be read"):
        Engine(model, tokenizer, config)
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3]])).logits[..., :200], plain)


def test_layers_with_a_window_of_their_own_have_a_memory_too():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=200, hidden_size=32, intermediate_size=48, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, sliding_window=12,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    model, info = attached(Gemma3ForCausalLM._from_config(config).eval())
    settings = SMALL.replace(compressive=LINEAR)
    ids = tokens(100)
    memory = with_gates(info, settings, gates(info))
    read_in_passes(model, memory, ids[:61], 6, 2)
    assert memory.layers[0].compressive.state.tokens == memory.layers[0].local.first // 8 * 8 > 30
    mark = memory.mark()
    first = read_in_passes(model, memory, ids[61:], 6, 2)
    memory.rewind(mark)
    assert torch.equal(read_in_passes(model, memory, ids[61:], 6, 2), first)


def test_a_layer_whose_heads_are_all_closed_holds_no_memory(routed):
    _, info = routed
    chosen = gates(info)
    chosen.gate[1] = 0
    config = SMALL.replace(compressive=LINEAR)
    memory = with_gates(info, config, chosen)
    assert [layer.compressive is None for layer in memory.layers] == [False, True, False]


def test_dropped_blocks_are_never_looked_up_again(routed):
    model, info = routed
    memory = new_memory(info, SMALL.replace(max_blocks=4))
    for at in range(0, 120, 6):
        read(model, memory, tokens(6, seed=at), [ReadSpan(6, 6)])
        for layer in memory.full_layers:
            held = [b for own in layer.working_set.stands_for for b in own]
            assert all(b >= layer.closed - 4 for b in held)
            assert len(layer.lookup.index.rows.starts) - 1 <= 4
