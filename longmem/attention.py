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
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from longmem.errors import ConfigError, UnsupportedModelError
from longmem.memory import AttentionCall, LayerSpec
from longmem.ops.rotary import Rotary
from longmem.probing import (
    Probe,
    ProbeError,
    Seen,
    difference,
    fit,
    loud,
    misfit,
    own_window,
    plain_attention,
    refuse_influence,
    rotaries,
    tolerance,
)

_NAME = "longmem"
_router: ContextVar[Router | None] = ContextVar("longmem_router", default=None)
"""Where attention goes now. Not a keyword argument of the model: some layers drop those."""
_POSITIONS = (0, 1, 2, 5, 9, 14, 20, 27)
"""Positions of the tokens of a probing pass: near ones tell all tables apart."""


class Router(Protocol):
    """What the attention function hands its tensors to: a `ForwardPass`, or a `Probe`."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """``[1, H, T, D]``, ``[1, H_kv, T, D]`` twice -> ``[1, T, H, D]``."""


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
    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, _mask)
    before = _implementations(model.config)
    try:
        _refuse_by_config(model)
        _set_implementation(model)
        return _measure(model)
    except BaseException as error:
        model.set_attn_implementation(before)
        if isinstance(error, ProbeError):
            raise _unsupported(model, str(error)) from None
        raise


@torch.no_grad()
def forward(model: PreTrainedModel, ids: Tensor, router: Router, last: Tensor) -> Tensor:
    """One forward pass.

    Args:
        ids: ``[1, T]`` token ids of all sessions.
        router: receives each layer's queries, keys and values.
        last: ``[n]`` indices of the tokens whose logits are wanted.

    Returns:
        Logits ``[n, V]`` float32.
    """
    keep = {"logits_to_keep": last} if "logits_to_keep" in _parameters(type(model)) else {}
    with _routing(router):
        output = model(
            input_ids=ids, position_ids=torch.zeros_like(ids), use_cache=False, **keep
        )
    return cast(Tensor, (output.logits if keep else output.logits[:, last])[0].float())


@contextmanager
def _routing(router: Router) -> Iterator[None]:
    token = _router.set(router)
    try:
        yield
    finally:
        _router.reset(token)


@cache
def _parameters(model: type[PreTrainedModel]) -> frozenset[str]:
    return frozenset(inspect.signature(model.forward).parameters)


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
    router = _router.get()
    if router is None:
        raise ConfigError(
            f"{type(module).__name__} was called outside longmem, which has taken over this model's "
            "attention: use Session.ask or Session.stream, or a second copy of the model "
            "for generate() and the like"
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    layer, call = cast(int, module.layer_idx), AttentionCall(scaling, softcap, s_aux)
    if not isinstance(router, Probe):
        return router.attend(layer, query, key, value, call), None
    if router.reads:
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
    q, k = (loud(x, x.shape[1], call.scaling) for x in (query, key))
    hidden = torch.ones(q.shape[2], q.shape[2], device=q.device, dtype=torch.bool).triu(1)
    mask = torch.zeros(hidden.shape, device=q.device).masked_fill(hidden, -1e30)[None, None]
    theirs, _ = eager(module, q, k, k, mask, scaling=call.scaling, dropout=0.0, **{
        name: value for name, value in settings.items() if name not in ("scaling", "dropout")
    })  # fmt: skip
    if not difference(plain_attention(q, k, k, call), theirs) <= 1e-2:
        raise ProbeError("its attention is more than a softmax over scaled dot products")


def _refuse_by_config(model: PreTrainedModel) -> None:
    """What the configuration tells plainly, told plainly."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        raise ProbeError("it is an encoder-decoder")
    if getattr(model, "_is_stateful", False):
        raise ProbeError("it keeps state outside attention (recurrent or linear-attention layers)")
    if getattr(config, "kv_lora_rank", None):
        raise ProbeError("multi-head latent attention (MLA) does not keep plain keys and values")
    if getattr(config, "num_kv_shared_layers", None):
        raise ProbeError("some of its layers share the keys and values of others")
    known = {"full_attention", "sliding_attention", "attention"}
    strange = sorted(set(getattr(config, "layer_types", None) or ()) - known)
    if strange:
        raise ProbeError(
            f"it has layers of type {', '.join(strange)}; only full attention and sliding windows "
            "can be held"
        )
    if "position_ids" not in _parameters(type(model)):
        alibi = any("alibi" in name for name in vars(sys.modules[type(model).__module__]))
        raise ProbeError(f"it takes no position ids{' (it uses ALiBi)' if alibi else ''}")
    if model.get_output_embeddings() is None:
        raise ProbeError("it is no causal language model: it gives no logits")
    _trained_positions(config)


def _trained_positions(config: Any) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not positions:
        raise ProbeError("its config has no max_position_embeddings")
    return int(positions)


def _implementations(config: Any) -> dict[str, Any]:
    """The attention implementations of a config and its parts, as `set_attn_implementation` takes."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    nested = {name: _implementations(part) for name, part in parts.items() if part is not None}
    return {"": config._attn_implementation, **nested}


def _set_implementation(model: PreTrainedModel) -> None:
    try:
        model.set_attn_implementation(_NAME)
    except (ValueError, KeyError, ImportError) as error:
        raise ProbeError(f"its attention cannot be replaced ({error})") from error
    if model.config.get_text_config()._attn_implementation != _NAME:
        raise ProbeError("its attention does not go through transformers' attention interface")


def _probe(model: PreTrainedModel, ids: Tensor, at: Tensor, reads: bool = False) -> Probe:
    """One probing pass of tokens `ids` ``[T]`` at positions `at` ``[T]``."""
    probe = Probe(reads)
    try:
        with torch.no_grad(), _routing(probe):
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
    return probe


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No dropout while measuring."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _measure(model: PreTrainedModel) -> ModelInfo:
    """Four short passes: un-rotated, rotated, reversed, and at the last of the trained positions."""
    config = model.config.get_text_config()
    weight = model.get_input_embeddings().weight
    device = torch.device("cpu") if weight.is_meta else weight.device  # offloaded by accelerate
    at = torch.tensor(_POSITIONS, device=device)
    ids = (torch.arange(len(at), device=device) * 7 + 3) % config.vocab_size
    with _evaluating(model):
        turned = _probe(model, ids, at).seen
        flat = _probe(model, ids, torch.zeros_like(at), reads=True).seen
        tables = [b for name, b in model.named_buffers() if name.endswith("inv_freq")]
        specs = _specs(flat, turned, at, tables)
        positions = _usable_positions(model, ids, flat, specs)
        back = _probe(model, ids.flip(0), torch.zeros_like(at)).seen
    for i in flat:
        refuse_influence(flat[i], back[i])
    return ModelInfo(specs, positions)


def _specs(
    flat: dict[int, Seen], turned: dict[int, Seen], at: Tensor, tables: list[Tensor]
) -> tuple[LayerSpec, ...]:
    candidates: dict[torch.device, list[Rotary]] = {}
    specs = []
    for i, seen in sorted(flat.items()):
        _, heads, _, dim = seen.q.shape
        device = seen.k.device
        if device not in candidates:
            candidates[device] = rotaries(t.to(device) for t in tables if not t.is_meta)
        specs.append(
            LayerSpec(
                index=i,
                heads=heads,
                kv_heads=seen.k.shape[1],
                dim=dim,
                rotary=fit(seen, turned[i], at, candidates[device]),
                sliding=own_window(seen.mask),
                scaling=seen.call.scaling,
                dtype=seen.k.dtype,
                device=device,
            )
        )
    return tuple(specs)


def _usable_positions(
    model: PreTrainedModel, ids: Tensor, flat: dict[int, Seen], specs: tuple[LayerSpec, ...]
) -> int:
    """How far the measured rotation holds: not beyond a change of table (longrope), nor to where
    queries are scaled by their position (Ministral 3)."""
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    first = [part.get("original_max_position_embeddings") for part in parts]
    trained = _trained_positions(config)
    for positions in sorted({trained, *(int(p) for p in first if p)}, reverse=True):
        at = torch.linspace(0, positions - 1, len(ids), device=ids.device).long()
        far = _probe(model, ids, at).seen
        if all(
            misfit(flat[s.index], far[s.index], at, s.rotary) <= tolerance(flat[s.index].q)
            for s in specs
        ):
            return min(positions, trained)
    raise ProbeError("what it does with distant positions is not a known rotation (RoPE)")


def _unsupported(model: PreTrainedModel, reason: str) -> UnsupportedModelError:
    kind = getattr(model.config, "model_type", type(model).__name__)
    return UnsupportedModelError(
        f"longmem cannot hold the memory of this model ({kind}): {reason}. "
        "Use a decoder with rotary attention in every layer (Llama, Qwen, Mistral, Gemma, Phi ...)"
    )
