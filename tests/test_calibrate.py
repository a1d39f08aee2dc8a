"""Gates from sample text: the best mix of each head, and closed where the model would be worse off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import Command
from tiny import attached, qwen3, tokens
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from longmem import ConfigError, Engine, InputError, MemoryConfig
from longmem.attention import ModelInfo, forward
from longmem.calibration import MixStatistics, calibrate, held_out_loss, keep_what_helps, split
from longmem.calibration.listening import Heard
from longmem.calibration.report import unwatched
from longmem.calibration.routers import WholeRouter
from longmem.calibration.settings import settings, snippet
from longmem.calibration.study import Study
from longmem.calibration.whole import WholeLayer
from longmem.config import Compressive
from longmem.gate_file import load_gates, save_gates
from longmem.memory import AttentionCall, Gates, Reading, ReadSpan
from longmem.nano.dialogue import make_dialogue
from longmem.ops.compressive import get_feature_map, retrieve_naive, update_naive
from longmem.ops.compressive.state import CompressiveState

SMALL = MemoryConfig(
    n_init=2,
    n_local=16,
    block_size=8,
    lookup_span=8,
    topk=0,
    compressive=Compressive(rule="linear", chunk=8),
)
SEGMENTS = SMALL.replace(window="segment", n_init=0)


def with_memory(config: MemoryConfig = SMALL, **changes: object) -> MemoryConfig:
    assert config.compressive is not None
    return config.replace(compressive=config.compressive.model_copy(update=changes))


def made_up(seed: int, heads: int = 4, n: int = 300) -> tuple[Tensor, Heard]:
    """Full attention that is part window, part memory, part something else; shares differ by head."""
    dice = torch.Generator().manual_seed(seed)
    local, value, other = torch.randn(3, heads, n, 8, generator=dice)
    level = torch.randn(heads, n, generator=dice) * 2
    share = torch.sigmoid(level + torch.linspace(-3, 1, heads)[:, None])[..., None]
    full = torch.lerp(local, value, share) + 0.3 * other
    return full, Heard(0, local, value, level)


def test_the_gate_is_the_best_that_a_search_finds() -> None:
    full, heard = made_up(1)
    sums = MixStatistics(4)
    sums.add(full[:, :100], Heard(0, heard.local[:, :100], heard.value[:, :100], None))
    sums.add(full[:, 100:], Heard(100, heard.local[:, 100:], heard.value[:, 100:], None))
    tried = torch.linspace(0, 1, 401)
    mixed = torch.lerp(heard.local[:, None], heard.value[:, None], tried[:, None, None])
    best = tried[(full[:, None] - mixed).square().sum((-1, -2)).argmin(1)]
    assert (sums.gate() - best).abs().max() < 1e-2
    before, after = sums.errors(sums.gate(), None)
    mix = torch.lerp(heard.local, heard.value, sums.gate()[:, None, None])
    assert torch.allclose(before.float(), (full - heard.local).square().sum((1, 2)), rtol=1e-4)
    assert torch.allclose(after.float(), (full - mix).square().sum((1, 2)), rtol=1e-4)


def test_the_offset_is_the_best_that_a_search_finds() -> None:
    full, heard = made_up(2)
    assert heard.level is not None
    sums = MixStatistics(4)
    sums.add(full, heard)

    def error(offset: Tensor) -> Tensor:
        share = torch.sigmoid(offset[:, None] + heard.level)[..., None]
        return (full - torch.lerp(heard.local, heard.value, share)).square().sum((1, 2))

    least = torch.stack([error(torch.full((4,), c)) for c in torch.linspace(-8, 8, 321)]).amin(0)
    assert (error(sums.offset()) <= least * 1.002).all()
    assert (
        sums.errors(torch.ones(4), sums.offset())[1] / error(sums.offset()) - 1
    ).abs().max() < 1e-2


def test_a_memory_that_points_away_or_holds_nothing_is_not_listened_to() -> None:
    full, heard = made_up(3)
    away = Heard(0, heard.local, 2 * heard.local - full, heard.level)
    sums = MixStatistics(4)
    assert sums.gate().tolist() == [0.0] * 4
    sums.add(full, away)
    assert sums.gate().tolist() == [0.0] * 4
    assert torch.isneginf(sums.offset()).all()


def test_the_target_is_the_attention_of_the_model_itself() -> None:
    plain = qwen3()
    model, info = attached(plain)
    ids = torch.tensor([tokens(90)])
    reading = Reading(0, [ReadSpan(90, 90)])
    layers = [WholeLayer(spec, info.max_positions) for spec in info.layers]
    logits = forward(model, ids, WholeRouter(layers, reading), torch.arange(90))
    with torch.no_grad():
        assert (logits - plain(ids).logits[0]).abs().max() < 1e-4


class FirstLayer(WholeRouter):
    """Keeps what the first layer was given."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        out = super().attend(layer, q, k, v, call)
        if layer == 0:
            self.q, self.k, self.v, self.out, self.scaling = q[0], k[0], v[0], out[0], call.scaling
        return out


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_sums_equal_the_equations_read_segment_by_segment(rule: str) -> None:
    model, info = attached(qwen3())
    config, n = with_memory(SEGMENTS, rule=rule), 56
    ids = torch.tensor(tokens(n))
    found = Study(model, info, config, n, unwatched).compare([ids], {}, "")[0]
    layers = [WholeLayer(spec, info.max_positions) for spec in info.layers]
    seen = FirstLayer(layers, Reading(0, [ReadSpan(n, n)]))
    forward(model, ids[None], seen, torch.arange(1))

    phi, spec = get_feature_map("elu"), info.layers[0]
    assert spec.rotary is not None
    near = spec.rotary.rotate(seen.k, spec.rotary.angles(torch.arange(n), torch.float32))
    q_near = spec.rotary.rotate(seen.q, spec.rotary.angles(torch.arange(n), torch.float32))
    state = CompressiveState.empty(spec.kv_heads, spec.dim, spec.dim)
    group = spec.heads // spec.kv_heads
    along = length = torch.zeros(spec.heads)
    for start in range(0, n, 16):
        part = slice(start, start + 16)
        k, v = (x[:, part].repeat_interleave(group, 0) for x in (near, seen.v))
        future = torch.full((k.shape[1], k.shape[1]), -torch.inf).triu(1)
        local = torch.softmax(q_near[:, part] @ k.mT * seen.scaling + future, -1) @ v
        if start:
            held, mass = retrieve_naive(phi(seen.q[:, part]), state)
            apart = seen.out[part].transpose(0, 1) - local
            memory = held / mass[..., None] - local
            along = along + (apart * memory).sum((1, 2))
            length = length + memory.square().sum((1, 2))
        update_naive(state, phi(seen.k[:, part]), seen.v[:, part], rule)  # type: ignore[arg-type]
    assert found.queries == n - 16
    assert torch.allclose(found.gate(), (along / length).clamp(0, 1), atol=1e-4)


@pytest.mark.parametrize("config", [SMALL, SEGMENTS], ids=["sliding", "segment"])
@pytest.mark.parametrize("mix", ["gate", "lse"])
@pytest.mark.parametrize("feature_map", ["elu", "learned"])
def test_calibrated_gates_never_raise_the_held_out_loss(
    config: MemoryConfig, mix: str, feature_map: str
) -> None:
    model, info = attached(qwen3())
    config = with_memory(config, mix=mix, feature_map=feature_map)
    texts = [torch.tensor(tokens(300))]
    found = calibrate(model, info, config, texts, context=60, feature_steps=8)
    assert ((found.gates.gate >= 0) & (found.gates.gate <= 1)).all()
    assert found.kept.loss <= found.kept.closed
    held_out = split(texts, 60)[1]
    assert found.kept.loss == held_out_loss(model, info, config, held_out, found.gates)
    assert found.kept.closed == held_out_loss(model, info, config, held_out, None)
    assert [layer.layer for layer in found.layers] == [0, 1, 2]
    assert (feature_map == "learned") == bool(found.gates.features)
    json.dumps(found.figures(), allow_nan=False)


def test_layers_with_a_window_of_their_own_stay_closed_and_the_file_loads(tmp_path: Path) -> None:
    shape = qwen3().config.to_dict() | {"sliding_window": 12, "use_sliding_window": True}
    shape["layer_types"] = ["full_attention", "sliding_attention", "full_attention"]
    torch.manual_seed(0)
    model, info = attached(Qwen3ForCausalLM(Qwen3Config(**shape)).eval())
    assert info.layers[1].sliding == 12
    config = with_memory(feature_map="learned")
    found = calibrate(model, info, config, [torch.tensor(tokens(300))], context=60, feature_steps=8)
    assert found.layers[1].heads_open == 0 and found.layers[1].loss_alone is None
    assert max(layer.heads_open for layer in found.layers) > 0
    path, compressive = tmp_path / "g.safetensors", config.compressive
    assert compressive is not None
    save_gates(path, found.gates, model, compressive)
    assert torch.equal(load_gates(path, model, info.layers, compressive).gate, found.gates.gate)


def test_a_learned_map_comes_nearer_to_full_attention() -> None:
    model, info = attached(qwen3())
    config = with_memory(feature_map="learned")
    study = Study(model, info, config, 120, unwatched)
    texts = [torch.tensor(tokens(480))]
    start = {spec.index: torch.eye(8).repeat(2, 1, 1) for spec in info.layers}
    learned = study.feature_maps(texts, 60)

    def left(features: dict[int, Tensor]) -> Tensor:
        sums = study.compare([torch.tensor(tokens(360, seed=2))], features, "")
        return torch.stack([s.errors(s.gate(), None)[1].sum() for s in sums.values()])

    assert (left(learned) < left(start)).all()


def written_by(model: PreTrainedModel, info: ModelInfo, gates: Gates | None) -> Tensor:
    """Text the model itself writes under these gates: any other gates predict it worse."""
    from longmem.memory import ForwardPass, SessionMemory

    memory = SessionMemory(info.layers, SMALL, SMALL.n_init, gates=gates, journal=False)
    dice, ids = torch.Generator().manual_seed(4), [1]
    while len(ids) < 160:
        run = ForwardPass([(memory, memory.prepare([ReadSpan(1, 1)]))])
        logits = forward(model, torch.tensor([ids[-1:]]), run, torch.arange(1))
        run.finish()
        ids.append(int(torch.multinomial(torch.softmax(logits[0], -1), 1, generator=dice)))
    return torch.tensor(ids)


def test_gates_that_make_the_model_worse_stay_closed_and_others_open() -> None:
    model, info = attached(qwen3())
    gates = Gates(torch.full((3, 4), 0.9))
    config = SMALL.replace(lookup_span=1)
    for writer, layers in ((None, ()), (gates, (0, 1, 2))):
        text = written_by(model, info, writer)
        kept = keep_what_helps(
            gates, lambda g, text=text: held_out_loss(model, info, config, [text], g)
        )
        assert kept.layers == layers
        assert kept.loss == min(kept.closed, kept.all_open, *kept.alone.values())
        assert bool(kept.gates.gate.any()) == bool(layers)
    closed = keep_what_helps(Gates(torch.zeros(3, 4)), lambda g: 1.0)
    assert (closed.layers, closed.alone) == ((), {})


def test_the_end_of_the_text_is_held_out() -> None:
    whole = torch.arange(100)
    first, rest = split([whole], 20)
    assert torch.equal(torch.cat(first), whole[:80]) and torch.equal(torch.cat(rest), whole[80:])
    texts = [whole[i : i + 10] for i in range(0, 100, 10)]
    first, rest = split(texts, 20)
    assert [len(t) for t in first] == [10] * 8 and len(rest) == 2
    first, rest = split([whole[:10], whole], 20)
    assert [len(t) for t in first] == [10, 78] and torch.equal(rest[0], whole[78:])


def test_the_settings_that_are_printed_are_those_that_were_calibrated() -> None:
    changes = {"compressive": {"rule": "linear", "decay": 0.5}, "topk": 2}
    config = settings(MemoryConfig(), 512, None, changes)
    assert config.n_local == 128 and config.compressive is not None
    with_gates = config.compressive.model_copy(update={"gates": "g.safetensors"})
    names = {"MemoryConfig": MemoryConfig, "Compressive": Compressive}
    printed = eval(snippet(config, "g.safetensors"), names)
    assert printed == config.replace(compressive=with_gates)


def test_texts_and_contexts_that_leave_memory_empty_are_refused() -> None:
    model, info = attached(qwen3())
    ids = torch.tensor(tokens(400))
    with pytest.raises(InputError, match=r"the text has 400 tokens, but .* need 500"):
        calibrate(model, info, SMALL, [ids], context=100)
    with pytest.raises(ConfigError, match=r"context of 40 tokens is too short: .* after 42"):
        calibrate(model, info, SMALL, [ids], context=40)
    with pytest.raises(InputError, match="the longest text has 20 tokens"):
        calibrate(model, info, SMALL, list(ids.split(20)), context=50)


def test_weights_that_are_not_finite_are_refused() -> None:
    model, info = attached(qwen3())
    model.model.layers[1].self_attn.q_proj.weight.data[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"layers\.1\.self_attn\.q_proj\.weight.* holds NaN"):
        calibrate(model, info, SMALL, [torch.tensor(tokens(400))], context=60)


@pytest.fixture
def longmem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "100")
    return Command(monkeypatch, capsys)


@pytest.fixture
def dialogue(tmp_path: Path) -> Path:
    told = make_dialogue(5, 2500, lambda text: len(text) // 3 + 5)
    turns = [f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in told.turns]
    path = tmp_path / "talk.txt"
    path.write_text("".join(turns), "utf-8")
    return path


def test_the_command_writes_a_file_that_the_engine_reads(
    longmem: Command, dialogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gates.safetensors"
    asked = ["--text", str(dialogue), "--out", str(out), "--window", "32", "--rule", "linear"]
    done = longmem("calibrate", *asked, "--tokens", "1300", "--json")
    assert done.code == 0, done.err
    assert "Held-out loss" in done.out and "compressive=Compressive(" in done.out
    figures = json.loads(done.out.splitlines()[-1])
    assert figures["loss"] <= figures["loss_closed"]
    assert figures["tokens"] + figures["held_out"] <= 1300
    config = MemoryConfig(**figures["config"])
    assert config.n_local == 32 and config.compressive is not None
    used = config.compressive.model_copy(update={"gates": str(out)})
    engine = Engine.nano(config.replace(compressive=used))
    assert engine.gates is not None
    open_ = [i for i, row in enumerate(engine.gates.gate) if row.any()]
    assert open_ == figures["layers_open"]


def test_a_gate_file_changes_what_its_model_says_and_is_refused_by_another(tmp_path: Path) -> None:
    path = tmp_path / "gates.safetensors"
    model, info = attached(qwen3())
    compressive = SMALL.compressive
    assert compressive is not None
    save_gates(path, Gates(torch.full((3, 4), 0.5)), model, compressive)
    gates = load_gates(path, model, info.layers, compressive)
    ids = [torch.tensor(tokens(200))]
    opened = held_out_loss(model, info, SMALL, ids, gates)
    assert abs(opened - held_out_loss(model, info, SMALL, ids, None)) > 1e-3
    other, _ = attached(qwen3(seed=1))
    with pytest.raises(ConfigError, match="belongs to a model with other weights"):
        load_gates(path, other, info.layers, compressive)


def test_what_cannot_work_is_told_before_any_work(
    longmem: Command, dialogue: Path, tmp_path: Path
) -> None:
    out = tmp_path / "g.safetensors"

    def refused(*arguments: str) -> str:
        done = longmem("calibrate", *arguments)
        assert (done.code, done.out) == (1, "")
        return done.err

    assert "nowhere.txt cannot be read" in refused("--text", "nowhere.txt", "--out", str(out))
    missing = str(tmp_path / "missing" / "g.safetensors")
    assert "there is no folder" in refused("--text", str(dialogue), "--out", missing)
    asked = ["--text", str(dialogue), "--out", str(out)]
    assert "nothing to fit" in refused(*asked, "--features", "--feature-map", "dpfp")
    assert "which is no preset; write --set topk=VALUE" in refused(*asked, "--set", "infllm:topk=3")
    assert "--feature-steps are those of --features" in refused(*asked, "--feature-steps", "9")
    dialogue.write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in refused(*asked)
    assert not out.exists()
