"""A transformers model made segment-recurrent: its window is a segment, what went before is memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from longmem.attention import attach
from longmem.errors import ConfigError, InputError, UnsupportedModelError
from longmem.fit import check_weights
from longmem.ops.compressive import (
    FEATURE_MAPS,
    RULES,
    FeatureMap,
    Rule,
    get_feature_map,
    warn_if_fixed,
)
from longmem.routing import route
from longmem.training.router import SegmentRouter
from longmem.training.state import RecurrentState


class SegmentRecurrent(nn.Module):
    """Infini-attention (arXiv 2404.07143) over any decoder that longmem can hold.

    A token attends to its own segment and reads, by linear attention, a memory of all segments before
    it; each query head mixes the two by a gate that is learned (equation 10). The model itself is
    changed: its attention goes through longmem from now on.

    Args:
        model: full attention in every layer; trained in the precision it has.
        segment: tokens of a segment (paper: 2,048), at most the trained positions.
        rule: how memory is updated: "linear", "delta" or "delta_literal".
        feature_map: "elu" (paper), "dpfp" (ARMT) or "learned" (LoLCATs; starts as the identity).
        gate_start: beta of every head before training; 0 is half memory, half segment.

    Raises:
        UnsupportedModelError: the model cannot be held, its weights are not finite, or some of its
            layers have a sliding window.
        ConfigError: no such rule or feature map, or no segment within the trained positions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        segment: int = 2048,
        rule: Rule = "linear",
        feature_map: str = "elu",
        gate_start: float = 0.0,
    ) -> None:
        super().__init__()
        _check_names(rule, feature_map)
        check_weights(model)
        info = attach(model)
        _refuse_sliding(model, [spec.index for spec in info.layers if spec.sliding is not None])
        _check_segment(segment, info.max_positions)
        warn_if_fixed(rule, feature_map, segment)
        self.model, self.specs = model, info.layers
        self.segment, self.rule, self.feature_map = segment, rule, feature_map
        heads = {spec.heads for spec in info.layers}
        if len(heads) > 1:
            raise UnsupportedModelError(
                f"its layers differ in their number of heads ({sorted(heads)}), and gates are one "
                "[layers, heads] table; train a model with equal layers"
            )
        device = info.layers[0].device
        start = torch.full((len(info.layers), heads.pop()), gate_start, device=device)
        self.beta = nn.Parameter(start)
        """``[L, H]`` float32; the gate is its sigmoid."""
        self.feature_weights = nn.ParameterList(
            torch.eye(spec.dim, device=spec.device).repeat(spec.kv_heads, 1, 1)
            for spec in info.layers
            if feature_map == "learned"
        )

    @property
    def gate(self) -> Tensor:
        """``[L, H]`` in [0, 1]: share of the memory in each head's output."""
        return torch.sigmoid(self.beta)

    @property
    def maps(self) -> tuple[FeatureMap, ...]:
        """The feature map of each layer."""
        weights = list(self.feature_weights) or [None] * len(self.specs)
        return tuple(get_feature_map(self.feature_map, weight) for weight in weights)

    def empty(self, batch: int) -> RecurrentState:
        """The state before the first token of `batch` sequences."""
        return RecurrentState.empty(self.specs, self.maps, batch)

    def forward(
        self,
        ids: Tensor,
        state: RecurrentState | None = None,
        *,
        keep: Tensor | None = None,
        repeats: int = 1,
    ) -> tuple[Tensor, RecurrentState]:
        """Read on.

        Args:
            ids: ``[B, T]``, from the start of a segment on. Whole segments are folded into the
                memory; the tokens of a last segment that is not whole are not: hand them in again,
                before what follows them.
            state: memories of the segments before; None before the first. It is left as it is.
            keep: ``[n]`` token indices whose logits are wanted; None wants all.
            repeats: fold the segments of this call that many times, as if the stream had repeated
                them, so that short training inputs can have the memory of very long ones. Exact and
                free under the linear rule; under "delta_literal" in doubling steps that come close;
                under "delta" each time is computed, and many of one segment are no good stand-in for
                a long stream.

        Returns:
            Logits ``[B, n, V]`` and the state after the last whole segment.

        Raises:
            InputError: `ids` is no ``[B, T]`` with a token in it.
            ConfigError: gradient checkpointing is on.
        """
        if ids.dim() != 2 or not ids.numel():
            raise InputError(f"ids is of shape {list(ids.shape)}; give token ids [B, T], T >= 1")
        self._refuse_checkpointing()
        state = self.empty(ids.shape[0]) if state is None else state
        router = SegmentRouter(
            self.specs, self.maps, self.gate, state, self.segment, self.rule, repeats
        )
        keep = torch.arange(ids.shape[1], device=ids.device) if keep is None else keep
        with route(router):
            logits = self.model(
                input_ids=ids,
                position_ids=torch.zeros_like(ids),
                use_cache=False,
                logits_to_keep=keep,
            ).logits
        return logits, router.state

    def _refuse_checkpointing(self) -> None:
        """It would run layers again while gradients are taken, when no memory is there for them."""
        parts = self.model.modules() if torch.is_grad_enabled() and self.training else ()
        if any(getattr(part, "gradient_checkpointing", False) for part in parts):
            raise ConfigError(
                "gradient checkpointing does not go with segment recurrence; call "
                "model.gradient_checkpointing_disable(), and save memory by a smaller Trainer bptt"
            )

    def parameter_groups(
        self, lr: float, gate_lr: float = 0.01, weight_decay: float = 0.01
    ) -> list[dict[str, Any]]:
        """Groups for a torch optimiser. Gates learn faster and never decay: a gate that starts at one
        half and is pulled there by the optimiser stays there.

        Args:
            lr: of the model and of learned feature maps.
            gate_lr: of the gates.
            weight_decay: of matrices only.
        """
        rest = [p for p in self.parameters() if p is not self.beta and p.requires_grad]
        matrices = [p for p in rest if p.dim() > 1]
        vectors = [p for p in rest if p.dim() <= 1]
        return [
            {"params": matrices, "lr": lr, "weight_decay": weight_decay},
            {"params": vectors, "lr": lr, "weight_decay": 0.0},
            {"params": [self.beta], "lr": gate_lr, "weight_decay": 0.0},
        ]


def _check_names(rule: str, feature_map: str) -> None:
    if rule not in RULES:
        raise ConfigError(f"there is no rule {rule!r}; choose one of {', '.join(RULES)}")
    if feature_map not in FEATURE_MAPS:
        raise ConfigError(
            f"there is no feature map {feature_map!r}; choose one of {', '.join(FEATURE_MAPS)}"
        )


def _check_segment(segment: int, max_positions: int) -> None:
    if type(segment) is not int or not 1 <= segment <= max_positions:
        raise ConfigError(
            f"segment = {segment} is no whole number within the {max_positions} positions the model was "
            "trained on; choose a shorter segment"
        )


def _refuse_sliding(model: PreTrainedModel, sliding: list[int]) -> None:
    if sliding:
        raise UnsupportedModelError(
            f"layers {sliding} of this {model.config.model_type} model have a sliding window of their "
            "own, which segments would cut; train a model with full attention in every layer"
        )
