"""Models whose memory longmem cannot hold are refused with the reason, and left as they were."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from architectures import REFUSED, SIZES, build, build_kind
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from longmem.attention import attach
from longmem.errors import ConfigError, UnsupportedModelError

_T5 = {"vocab_size": 200, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
_BART = {
    "vocab_size": 200,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}
OTHER_CLASSES: dict[str, tuple[Any, str, dict[str, Any], str]] = {
    "t5": (AutoModelForSeq2SeqLM, "t5", _T5, "encoder-decoder"),
    "bart": (AutoModelForSeq2SeqLM, "bart", _BART, "encoder-decoder"),
    "headless": (AutoModel, "llama", SIZES, "no logits"),
    "classifier": (AutoModelForSequenceClassification, "llama", SIZES, "no logits"),
    "modernbert": (AutoModelForMaskedLM, "modernbert", SIZES, "neither causal nor a sliding"),
}


def refuse(model: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        attach(model)  # type: ignore[arg-type]  # some are no transformers models on purpose


def dense_logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 6, 7, 8]]), use_cache=False)[0]


def kinds(names: Any) -> list[Any]:
    return [
        pytest.param(
            kind,
            marks=pytest.mark.skipif(
                kind not in CONFIG_MAPPING, reason=f"this transformers has no {kind}"
            ),
        )
        for kind in names
    ]


def test_an_unsupported_model_is_an_error_of_the_configuration() -> None:
    assert issubclass(UnsupportedModelError, ConfigError)


@pytest.mark.parametrize("kind", kinds(REFUSED))
def test_a_model_that_cannot_be_held_is_refused_and_left_as_it_was(kind: str) -> None:
    values, reason = REFUSED[kind]
    model = build_kind(kind, own_sizes=True, **values)
    before = dense_logits(model)
    refuse(model, reason)
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(dense_logits(model), before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", OTHER_CLASSES)
def test_a_model_that_is_no_causal_decoder_is_refused(name: str) -> None:
    auto, kind, values, reason = OTHER_CLASSES[name]
    model = auto.from_config(CONFIG_MAPPING[kind](**values), attn_implementation="eager").eval()
    refuse(model, reason)
    assert model.config._attn_implementation == "eager"


def test_what_is_no_transformers_model_is_refused() -> None:
    refuse(nn.Linear(2, 2), "no transformers model")


def test_a_config_without_trained_positions_is_refused() -> None:
    model = build("llama")
    model.config.__dict__["max_position_embeddings"] = None  # past the config's own check
    refuse(model, "no max_position_embeddings")


def test_state_beside_attention_is_seen_where_the_config_does_not_tell() -> None:
    class Shift(nn.Module):
        """Mixes a hundredth of the token before into each token, as RWKV's token shift does."""

        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, x: Tensor) -> Tensor:
            before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
            return self.mlp(x + 0.01 * before)

    model = build("llama")
    model.model.layers[1].mlp = Shift(model.model.layers[1].mlp)
    refuse(model, "influence others outside attention")


def test_attention_that_is_more_than_a_softmax_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("gemma2")
    modeling = sys.modules[type(model).__module__]
    own = modeling.eager_attention_forward

    def cooler(*args: Any, **settings: Any) -> Any:
        return own(*args, **{**settings, "scaling": 0.9 * settings["scaling"]})

    monkeypatch.setattr(modeling, "eager_attention_forward", cooler)
    refuse(model, "more than a softmax")


def test_weights_as_initialised_are_measured_like_others() -> None:
    plain = build("qwen3", shaken=False)
    loud = build("qwen3")
    for a, b in zip(attach(plain).layers, attach(loud).layers, strict=True):
        assert a.rotary is not None and b.rotary is not None
        assert a.rotary.style == b.rotary.style
        assert torch.equal(a.rotary.inv_freq, b.rotary.inv_freq)


def test_a_model_in_training_mode_is_measured_without_dropout_and_stays_in_it() -> None:
    model = build("phi", resid_pdrop=0.5, embd_pdrop=0.5).train()
    attach(model)
    assert model.training


def test_attaching_twice_gives_the_same_layers() -> None:
    model = build("gemma3_text")
    first, second = attach(model), attach(model)
    assert [s.sliding for s in first.layers] == [s.sliding for s in second.layers]


def test_tables_that_change_with_length_end_the_usable_positions() -> None:
    assert attach(build("phi3_longrope")).max_positions == 128
    assert attach(build("ministral3")).max_positions == 128
    assert attach(build("llama_yarn")).max_positions == 512


def test_a_window_is_the_masks_not_the_keyword_arguments() -> None:
    model = build("qwen2_sliding")
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 7  # told to attention, but no mask knows of it
    assert [s.sliding for s in attach(model).layers] == [24, None, 24]
