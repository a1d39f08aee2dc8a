"""Training with the compressive memory: gradients, truncation, and what the forward pass computes."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import VOCAB, qwen3, read_in_passes
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from longmem.attention import attach, forward, route
from longmem.config import Compressive, MemoryConfig
from longmem.errors import ConfigError, InputError, UnsupportedModelError
from longmem.gate_file import load_gates
from longmem.memory import AttentionCall, SessionMemory
from longmem.ops.compressive import EluPlusOne, retrieve, retrieve_naive, update, update_naive
from longmem.ops.compressive.state import CompressiveState
from longmem.training import SegmentRecurrent, Trainer, export
from longmem.training.router import SegmentRouter, _steps

SEGMENT = 8


def batch(rows: int, tokens: int, seed: int = 3) -> Tensor:
    return torch.randint(0, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def recurrent(rule: str = "linear", **settings: object) -> SegmentRecurrent:
    return SegmentRecurrent(qwen3(), segment=SEGMENT, rule=rule, **settings)  # type: ignore[arg-type]


class NaiveSegments:
    """Equations 7 to 10 for one sequence, segment by segment, straight from the paper."""

    def __init__(self, model: SegmentRecurrent) -> None:
        self.model = model

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        spec, features = self.model.specs[layer], self.model.maps[layer]
        gate = self.model.gate[layer][:, None, None]
        state = CompressiveState.empty(spec.kv_heads, features.width(spec.dim), spec.dim)
        out = []
        for start in range(0, q.shape[2], SEGMENT):
            part = slice(start, start + SEGMENT)
            near = self._dense(layer, q[0, :, part], k[0, :, part], v[0, :, part], start, call)
            if start:
                held, mass = retrieve_naive(features(q[0, :, part]), state)
                near = gate * held / mass[..., None] + (1 - gate) * near
            out.append(near)
            update_naive(state, features(k[0, :, part]), v[0, :, part], self.model.rule)
        return torch.cat(out, 1).transpose(0, 1)[None]

    def _dense(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, start: int, call: AttentionCall
    ) -> Tensor:
        rotary = self.model.specs[layer].rotary
        assert rotary is not None
        angles = rotary.angles(torch.arange(start, start + q.shape[1]), q.dtype)
        group = q.shape[0] // k.shape[0]
        q, k = rotary.rotate(q, angles), rotary.rotate(k, angles).repeat_interleave(group, 0)
        future = torch.full((q.shape[1], q.shape[1]), -torch.inf).triu(1)
        weights = torch.softmax(q @ k.mT * call.scaling + future, -1)
        return weights @ v.repeat_interleave(group, 0)


@torch.no_grad()
def logits_through(model: SegmentRecurrent, router: object, ids: Tensor) -> Tensor:
    return forward(model.model, ids, router, torch.arange(ids.shape[1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["linear", "delta", "delta_literal"])
@pytest.mark.parametrize("feature_map", ["elu", "learned"])
@pytest.mark.parametrize("tokens", [5, 8, 29])
def test_the_forward_pass_equals_the_equations_read_one_by_one(rule, feature_map, tokens):
    model, ids = recurrent(rule, feature_map=feature_map), batch(2, tokens)
    torch.nn.init.normal_(model.beta)
    with torch.no_grad():
        logits, state = model(ids)
    for row in range(2):
        expected = logits_through(model, NaiveSegments(model), ids[row : row + 1])
        torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=1e-4)
    assert state.tokens == tokens // SEGMENT * SEGMENT


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_segments_read_one_call_after_another_give_the_same(rule):
    model, ids = recurrent(rule), batch(2, 29)
    with torch.no_grad():
        whole, _ = model(ids)
        state, parts = None, []
        for start in (0, 8, 24):
            stop = {0: 8, 8: 24, 24: 29}[start]
            logits, state = model(ids[:, start:stop], state)
            parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)


def eager_per_segment(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return torch.cat([model(input_ids=part).logits for part in ids.split(SEGMENT, 1)], 1)


def test_closed_gates_leave_the_segment_local_attention_of_the_model():
    plain, ids = qwen3(), batch(2, 27)
    model = recurrent(gate_start=-40.0)
    with torch.no_grad():
        logits, _ = model(ids)
        torch.testing.assert_close(logits, eager_per_segment(plain, ids), atol=1e-4, rtol=1e-4)


def test_the_first_segment_is_read_as_if_there_were_no_memory():
    plain, ids = qwen3(), batch(1, SEGMENT)
    with torch.no_grad():
        logits, _ = recurrent(gate_start=40.0)(ids)
        torch.testing.assert_close(logits, plain(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_gradient_reaches_gates_and_first_tokens_through_several_segments(rule):
    model, ids = recurrent(rule), batch(1, 5 * SEGMENT)
    seen: list[Tensor] = []
    table = model.model.get_input_embeddings()
    table.register_forward_hook(lambda _m, _i, out: (out.retain_grad(), seen.append(out))[0])
    logits, _ = model(ids)
    logits[:, -1].logsumexp(-1).sum().backward()
    assert model.beta.grad is not None and model.beta.grad.abs().min() > 0
    assert seen[0].grad is not None
    assert seen[0].grad[0, :-1].abs().amax(-1).min() > 0


def test_a_gradient_stops_where_back_propagation_is_truncated():
    ids = batch(1, 4 * SEGMENT + 1)
    weights = torch.zeros(1, 4 * SEGMENT)
    weights[:, -1] = 1
    reached = {}
    for bptt in (None, 2):
        model = recurrent()
        seen: list[Tensor] = []
        model.model.get_input_embeddings().register_forward_hook(
            lambda _m, _i, out, seen=seen: (out.retain_grad(), seen.append(out))[0]
        )
        Trainer(model, bptt=bptt).step(ids, weights)
        grads = [torch.zeros_like(out) if out.grad is None else out.grad for out in seen]
        reached[bptt] = torch.cat(grads, 1)[0].abs().amax(-1) > 0
    assert reached[None].all()
    assert not reached[2][: 2 * SEGMENT].any() and reached[2][2 * SEGMENT :].all()


def test_the_loss_is_that_of_one_pass_whatever_the_truncation():
    ids, losses = batch(2, 4 * SEGMENT + 4), []
    for bptt in (None, 1, 3):
        model = recurrent("delta")
        losses.append(Trainer(model, bptt=bptt).step(ids).loss)
    logits, _ = recurrent("delta")(ids[:, :-1])
    expected = torch.nn.functional.cross_entropy(logits.mT, ids[:, 1:])
    assert losses == pytest.approx([float(expected.detach())] * 3, rel=1e-4)


@pytest.mark.parametrize("rule", ["linear", "delta", "delta_literal"])
def test_repeats_equal_folding_the_segment_again(rule):
    model, ids = recurrent(rule), batch(2, SEGMENT)
    keys: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        _, thrice = model(ids, repeats=3)
        router = SegmentRouter(model.specs, model.maps, model.gate, model.empty(2), SEGMENT, rule)
        fold = router.attend
        router.attend = lambda i, q, k, v, call: (keys.append((k, v)), fold(i, q, k, v, call))[1]
        with route(router):
            model.model(input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False)
        for layer, (k, v) in enumerate(keys):
            state = router.state.layers[layer]
            for _ in range(2):
                update(state, model.maps[layer](k), v, rule)
            torch.testing.assert_close(thrice.layers[layer].M, state.M, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(thrice.layers[layer].z, state.z, atol=1e-4, rtol=1e-4)
            assert thrice.layers[layer].tokens == state.tokens == 3 * SEGMENT


def test_many_repeats_under_the_delta_rule_as_printed_come_close_to_single_ones():
    features, (k, v) = EluPlusOne(), torch.randn(2, 1, 2, SEGMENT, 8).unbind()
    states = []
    for steps in (_steps(255, doubling=False), _steps(255, doubling=True)):
        state = CompressiveState.empty(2, 8, 8, batch=(1,))
        for times in [1, *steps]:
            update(state, times * features(k), v, "delta_literal")
        states.append(state)
    held = [retrieve(features(k), s)[0] / retrieve(features(k), s)[1][..., None] for s in states]
    assert len(_steps(255, doubling=True)) == 8
    torch.testing.assert_close(states[0].z, states[1].z, rtol=1e-4, atol=0)
    assert (held[0] - held[1]).norm() < 0.25 * held[0].norm()


def test_rows_of_a_state_go_on_as_they_would_have_together():
    model, ids = recurrent(), batch(3, 3 * SEGMENT)
    with torch.no_grad():
        _, state = model(ids[:, :16])
        together, _ = model(ids[:, 16:], state)
        alone, _ = model(ids[[2, 0]][:, 16:], state.rows(torch.tensor([2, 0])))
    torch.testing.assert_close(alone, together[[2, 0]], atol=1e-4, rtol=1e-4)


def test_a_copy_task_over_segments_is_learned():
    """The second token of a row comes again after two segments of the same noise in all rows."""
    torch.manual_seed(0)
    model = recurrent("linear")
    trainer = Trainer(model, lr=5e-3)
    weights = torch.zeros(32, 3 * SEGMENT)
    weights[:, -1] = 1
    losses = []
    for step in range(30):
        ids = batch(1, 3 * SEGMENT + 1).repeat(32, 1)
        ids[:, -1] = ids[:, 1] = batch(32, 1, seed=100 + step)[:, 0] % 4
        losses.append(trainer.step(ids, weights).loss)
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]
    assert losses[-1] < 0.9 * torch.tensor(4.0).log()


def test_a_gradient_that_is_not_finite_changes_nothing():
    model = recurrent()
    before = [p.clone() for p in model.parameters()]
    weights = torch.full((1, 2 * SEGMENT), float("inf"))
    report = Trainer(model).step(batch(1, 2 * SEGMENT + 1), weights)
    assert not torch.tensor(report.gradient).isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_gates_have_their_own_rate_and_never_decay():
    model = recurrent()
    groups = model.parameter_groups(1e-4, gate_lr=0.02)
    assert [g["params"] for g in groups if g["lr"] == 0.02] == [[model.beta]]
    assert groups[-1]["weight_decay"] == 0
    counted = sum(p.numel() for g in groups for p in g["params"])
    assert counted == sum(p.numel() for p in model.parameters())


def test_an_exported_folder_holds_the_model_and_its_gates(tmp_path):
    model = recurrent("delta", feature_map="learned")
    torch.nn.init.normal_(model.beta)
    file = export(model, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    settings = Compressive(rule="delta", feature_map="learned", gates=str(file))
    gates = load_gates(file, loaded, model.specs, settings, SEGMENT)
    assert torch.equal(gates.gate, model.gate)
    assert sorted(gates.features) == [0, 1, 2]
    assert torch.equal(gates.features[2], model.feature_weights[2])
    assert "longmem" not in json.dumps(loaded.config.to_dict())


@pytest.mark.parametrize("rule", ["linear", "delta", "delta_literal"])
@pytest.mark.parametrize("feature_map", ["elu", "dpfp", "learned"])
def test_a_session_memory_computes_what_was_trained(tmp_path, rule, feature_map):
    model, ids = recurrent(rule, feature_map=feature_map), batch(1, 45)
    torch.nn.init.normal_(model.beta)
    file = export(model, tmp_path)
    with torch.no_grad():
        expected, _ = model(ids)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    info = attach(loaded)
    settings = Compressive(rule=rule, feature_map=feature_map, gates=str(file))
    config = MemoryConfig.preset("infini", n_local=SEGMENT, compressive=settings)
    gates = load_gates(file, loaded, info.layers, settings, SEGMENT)
    memory = SessionMemory(info.layers, config, 0, gates=gates)
    logits = read_in_passes(loaded, memory, ids[0].tolist(), span=5, spans_per_pass=2)
    torch.testing.assert_close(logits, expected[0], atol=5e-4, rtol=1e-4)


def test_models_with_windows_of_their_own_and_segments_too_long_are_refused():
    config = MistralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, sliding_window=16,
    )  # fmt: skip
    sliding = MistralForCausalLM._from_config(config, attn_implementation="eager")
    with pytest.raises(UnsupportedModelError, match="sliding window of their own"):
        SegmentRecurrent(sliding, segment=SEGMENT)
    with pytest.raises(ConfigError, match="choose a shorter segment"):
        SegmentRecurrent(qwen3(), segment=512)


def test_the_linear_rule_is_the_default():
    assert SegmentRecurrent(qwen3(), segment=SEGMENT).rule == "linear"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "foo"}, "no rule 'foo'; choose one of linear"),
        ({"feature_map": "relu"}, "no feature map 'relu'; choose one of elu"),
        ({"segment": 2.5}, "segment = 2.5 is no whole number"),
        ({"segment": 0}, "segment = 0 is no whole number within the 256 positions"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused_by_their_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        SegmentRecurrent(qwen3(), **{"segment": SEGMENT, **settings})


def test_weights_that_are_not_finite_are_named():
    model = qwen3()
    model.model.layers[1].self_attn.q_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(UnsupportedModelError, match=r"layers\.1\.self_attn\.q_proj.* holds NaN"):
        SegmentRecurrent(model, segment=SEGMENT)


@pytest.mark.parametrize("bptt", [0, -1, 1.5])
def test_a_gradient_that_would_reach_back_through_no_segment_is_refused(bptt):
    with pytest.raises(ConfigError, match="is no number of segments"):
        Trainer(recurrent(), bptt=bptt)


def test_ids_and_weights_of_other_shapes_are_refused_before_anything_is_computed():
    model, ids = recurrent(), batch(2, 9)
    trainer = Trainer(model)
    with pytest.raises(InputError, match=r"weights are of shape \[2, 9\].*targets \[2, 8\]"):
        trainer.step(ids, torch.ones(2, 9))
    for shape in (ids[:, :1], ids[0]):
        with pytest.raises(InputError, match=r"give \[B, T \+ 1\] token ids"):
            trainer.step(shape)
    with pytest.raises(InputError, match=r"give token ids \[B, T\]"):
        model(ids[0])


def test_gradient_checkpointing_is_refused_by_name():
    model = recurrent()
    model.model.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(ConfigError, match="gradient checkpointing does not go with"):
        Trainer(model).step(batch(1, 9))
    with torch.no_grad():
        model(batch(1, 9))


def test_the_segment_an_export_was_trained_with_is_the_one_it_loads_with(tmp_path):
    model = recurrent()
    file = export(model, tmp_path)
    settings = Compressive(rule="linear", gates=str(file))
    with pytest.raises(ConfigError, match=r"segment = '8', but .*'16'; set MemoryConfig.n_local"):
        load_gates(file, model.model, model.specs, settings, 16)
    with pytest.raises(ConfigError, match=r"window = 'segment', but .*'sliding'"):
        load_gates(file, model.model, model.specs, settings)
    assert load_gates(file, model.model, model.specs, settings.model_copy(update={"chunk": 5}), 8)
