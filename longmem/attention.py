"""The seam with transformers: the only file that touches its moving names.

A model's attention is replaced through transformers' own registries, and the model is called with
all positions zero. Rotation by angle 0 is the identity, so queries and keys arrive un-rotated, of
every architecture, without hooks, subclasses or patches. What a layer does with positions, whom it
lets a token see, and that no state lives outside attention, is measured on the loaded model before
it is used (`longmem.probing`); what cannot be held is refused there.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from longmem.errors import ConfigError, UnsupportedModelError
from longmem.memory import AttentionCall, LayerSpec
from longmem.model_devices import input_device, logits_to_keep
from longmem.probing import Probe, ProbeError, Seen, difference, loud, measure, plain_attention
from longmem.routing import Router, current, opaque, route

_NAME, _PROBED = "longmem", "longmem_probed"
"""The attention, and the same while it is measured. Only the latter has a mask function: with one,
transformers compares positions in every pass, which waits for the device."""
_RECURRENT = "its recurrent or linear-attention layers keep state outside attention"
_STRANGE = {
    "conv": "its short convolutions keep state outside attention",
    "linear_attention": _RECURRENT,
    "mamba": _RECURRENT,
    "hybrid": _RECURRENT,
    "hybrid_sliding": _RECURRENT,
    "chunked_attention": "its chunked attention is neither full nor a sliding window",
}
"""Layer types that cannot be held, with the reason."""


@dataclass(frozen=True)
class ModelInfo:
    """What was measured on a model.

    Args:
        layers: its attention layers, in order.
        max_positions: trained positions that one rotation table covers.
    """

    layers: tuple[LayerSpec, ...]
    max_positions: int


def attach(model: PreTrainedModel) -> ModelInfo:
    """Route the model's attention to longmem, and measure what that needs to know.

    A model that is refused is left as it was.

    Raises:
        UnsupportedModelError: with the reason.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no transformers model; load one with AutoModelForCausalLM "
            "(of a PEFT model, pass get_base_model())"
        )
    for name in (_NAME, _PROBED):
        AttentionInterface.register(name, _attention)
    AttentionMaskInterface.register(_PROBED, _mask)
    before, training = _implementations(model.config), model.training
    try:
        model.eval()
        _refuse_by_config(model)
        _set_implementation(model, _PROBED)
        info = _measure(model)
        _set_implementation(model, _NAME)
        return info
    except BaseException as error:
        model.set_attn_implementation(before)
        if isinstance(error, ProbeError):
            raise _unsupported(model, str(error)) from error.__cause__
        raise
    finally:
        if training:
            model.train()


@torch.no_grad()
def forward(
    model: PreTrainedModel,
    ids: Tensor,
    router: Router,
    last: Tensor,
    run: Callable[..., Any] | None = None,
) -> Tensor:
    """One forward pass.

    Args:
        ids: ``[1, T]`` token ids of all sessions.
        router: receives each layer's queries, keys and values.
        last: ``[n]`` indices of the tokens whose logits are wanted.
        run: what is called in place of `model`, for instance its compiled form.

    Returns:
        Logits ``[n, V]`` float32.
    """
    keep = {}
    if "logits_to_keep" in _parameters(type(model).forward):
        keep = {"logits_to_keep": logits_to_keep(model, ids, last)}
    with route(router):
        at_zero = torch.zeros_like(ids)
        output = (run or model)(input_ids=ids, position_ids=at_zero, use_cache=False, **keep)
    return cast(Tensor, (output.logits if keep else output.logits[:, last])[0].float())


@cache
def _parameters(function: Hashable) -> frozenset[str]:
    return frozenset(inspect.signature(cast(Any, function)).parameters)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    *,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The attention function transformers calls; shapes as `Router.attend`."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer = cast(int, module.layer_idx)
    if opaque():
        call_op = torch.ops.longmem.attend
        return call_op(query, key, value, layer, scaling, softcap, s_aux), None
    router = current()
    if router is None:
        raise ConfigError(
            f"{type(module).__name__} was called outside longmem, which has taken over the "
            "attention of this model: use Session.ask or Session.stream, or a second copy of the "
            "model for generate() and the like"
        )
    call = AttentionCall(scaling, softcap, s_aux)
    if not isinstance(router, Probe):
        return router.attend(layer, query, key, value, call), None
    _refuse_other_attention(module, query, key, call, softcap=softcap, s_aux=s_aux, **others)
    seen = Seen(query.clone(), key.clone(), value.clone(), call, attention_mask)
    return router.note(layer, seen), None


def _mask(
    *, mask_function: Any, config: Any, attention_mask: Tensor | None = None, **others: Any
) -> Tensor | None:
    """The mask function transformers calls. longmem decides who sees whom, so there is no mask.

    Only probing passes give an `attention_mask`. They get what two tokens at the end of the trained
    positions would see, ``[1, 1, 2, n + 1]`` bool, for `own_window`.
    """
    if attention_mask is None:
        return None
    device, n = attention_mask.device, _trained_positions(config)
    zero, key = torch.zeros((), dtype=torch.long, device=device), torch.arange(n + 1, device=device)
    rows = mask_function(zero, zero, torch.tensor([[n - 2], [n - 1]], device=device), key)
    return cast(Tensor, rows).expand(1, 1, 2, n + 1)


def _refuse_other_attention(
    module: nn.Module, query: Tensor, key: Tensor, call: AttentionCall, **settings: Any
) -> None:
    """Compare the modeling file's own attention with longmem's, on made-up queries and keys."""
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise ProbeError("its modeling file has no eager attention to compare with")
    q, k = loud(query, call.scaling), loud(key, call.scaling)
    future = torch.full((1, 1, q.shape[2], k.shape[2]), -1e30, device=q.device).triu(1)
    settings |= {"scaling": call.scaling, "dropout": 0.0}
    theirs, _ = eager(module, q, k, k, future, **settings)
    if not difference(plain_attention(q, k, k, call), theirs) <= 1e-2:
        raise ProbeError("its attention is more than a softmax over scaled dot products")


def _refuse_by_config(model: PreTrainedModel) -> None:
    """What the configuration tells plainly, told plainly; everything else is measured."""
    config = model.config.get_text_config()
    types = set(getattr(config, "layer_types", None) or ())
    strange = sorted(types - {"full_attention", "sliding_attention", "attention"})
    if model.config.is_encoder_decoder:
        raise ProbeError("it is an encoder-decoder")
    if strange:
        reasons = dict.fromkeys(_STRANGE.get(kind, f"it has {kind} layers") for kind in strange)
        raise ProbeError("; ".join(reasons))
    if getattr(model, "_is_stateful", False) and not types:
        raise ProbeError(_RECURRENT)
    if getattr(config, "kv_lora_rank", None):
        raise ProbeError("multi-head latent attention (MLA) does not keep plain keys and values")
    if getattr(config, "num_kv_shared_layers", None):
        raise ProbeError("some of its layers share the keys and values of others")
    if "position_ids" not in _parameters(type(model).forward):
        alibi = any("alibi" in name for name in vars(sys.modules[type(model).__module__]))
        raise ProbeError(f"it takes no position ids{' (it uses ALiBi)' if alibi else ''}")
    if model.get_output_embeddings() is None:
        raise ProbeError("it is no causal language model: it gives no logits")


def _trained_positions(config: Any) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not positions:
        raise ProbeError("its config has no max_position_embeddings")
    return int(positions)


def implementations(model: PreTrainedModel) -> str | dict[str, Any]:
    """The model's attention implementations, in the form its `set_attn_implementation` takes."""
    return _implementations(model.config)


def _implementations(config: Any) -> str | dict[str, Any]:
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    nested = {name: _implementations(part) for name, part in parts.items() if part is not None}
    own: str = config._attn_implementation
    return {"": own, **nested} if nested else own


def _set_implementation(model: PreTrainedModel, name: str) -> None:
    try:
        model.set_attn_implementation(name)
    except (ValueError, KeyError, ImportError) as error:
        raise ProbeError(f"its attention cannot be replaced ({error})") from error
    if model.config.get_text_config()._attn_implementation != name:
        raise ProbeError("its attention does not go through transformers' attention interface")


def _probe(model: PreTrainedModel, ids: Tensor, at: Tensor) -> dict[int, Seen]:
    """What each layer is given in one probing pass of tokens `ids` ``[T]`` at positions ``[T]``."""
    probe = Probe()
    try:
        with torch.no_grad(), route(probe):
            output = model(
                input_ids=ids[None],
                position_ids=at[None],
                attention_mask=torch.ones_like(ids)[None],
                use_cache=False,
            )
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise ProbeError(f"a probing pass failed: {type(error).__name__}: {error}") from error
    if getattr(output, "logits", None) is None:
        raise ProbeError("it is no causal language model: it gives no logits")
    missing = set(range(model.config.get_text_config().num_hidden_layers)) - set(probe.seen)
    if missing:
        raise ProbeError(
            f"layers {sorted(missing)} do not call attention: they keep state elsewhere, or none"
        )
    return probe.seen


def _measure(model: PreTrainedModel) -> ModelInfo:
    config = model.config.get_text_config()
    specs, positions = measure(
        lambda ids, at: _probe(model, ids, at),
        lambda: _rotation_tables(model),
        config.vocab_size,
        _position_limits(config),
        input_device(model),
    )
    return ModelInfo(specs, positions)


def _rotation_tables(model: PreTrainedModel) -> list[Tensor]:
    return [
        buffer
        for name, buffer in model.named_buffers()
        if name.endswith("inv_freq") and not buffer.is_meta
    ]


def _position_limits(config: Any) -> list[int]:
    """Trained positions, and those trained on before the context was extended, largest first."""
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [rope, config.to_dict(), *(part for part in rope.values() if isinstance(part, dict))]
    first = [part.get("original_max_position_embeddings") for part in parts]
    trained = _trained_positions(config)
    return sorted({trained, *(int(p) for p in first if p and p < trained)}, reverse=True)


def _unsupported(model: PreTrainedModel, reason: str) -> UnsupportedModelError:
    kind = getattr(model.config, "model_type", type(model).__name__)
    return UnsupportedModelError(
        f"longmem cannot hold the memory of this model ({kind}): {reason}. "
        "Use a decoder with rotary attention in every layer (Llama, Qwen, Mistral, Gemma, Phi ...)"
    )
