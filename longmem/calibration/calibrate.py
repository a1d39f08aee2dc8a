"""Calibration: from sample text to gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.attention import ModelInfo
from longmem.calibration.held_out import held_out_loss
from longmem.calibration.keep import Kept, keep_what_helps, open_heads
from longmem.calibration.report import Calibration, LayerReport, Watch, unwatched
from longmem.calibration.statistics import MixStatistics
from longmem.calibration.study import Study, Sums
from longmem.calibration.text import check_context, split
from longmem.config import Compressive, MemoryConfig
from longmem.errors import ConfigError
from longmem.fit import check_fit
from longmem.gate_file import segment_of
from longmem.memory import Gates, LayerSpec
from longmem.ops.compressive import warn_if_fixed


def calibrate(
    model: PreTrainedModel,
    info: ModelInfo,
    config: MemoryConfig,
    texts: Sequence[Tensor],
    *,
    context: int,
    feature_steps: int = 400,
    watch: Watch = unwatched,
) -> Calibration:
    """Find gates for the compressive memory of `config` without training the model.

    Texts are read in contexts of `context` tokens. In each layer and head, y_full attends to the
    whole context, y_local to what the engine's window holds, and y_memory is read from the engine's
    memory of the rest. The gate is the share of y_memory that brings y_local nearest to y_full,
    clip(<y_full - y_local, y_memory - y_local> / |y_memory - y_local|^2, 0, 1); for mix = "lse" the
    offset with the least error. Heads that do not come nearer on held-out text are closed, and layers
    with which the model's loss there does not fall: it never rises.

    Args:
        model: attached (`Engine` does so).
        info: what was measured on it.
        config: the settings the gates are for; its `compressive.gates` is ignored.
        texts: sample text, each ``[N]`` tokens that one session reads; the last fifth is held out.
        context: tokens that attention to everything reaches back; best within the trained positions.
        feature_steps: Adam steps per layer for feature_map = "learned", which reads the text twice.
        watch: told of progress.

    Raises:
        ConfigError: no compressive memory in `config`, a context too short, weights that are not finite.
        InputError: the text is too short.
    """
    compressive = check_model(model, info, config)
    check_context(config, texts, context)
    text, held_out = split(texts, context)
    study = Study(model, info, config, context, watch)
    learned = compressive.feature_map == "learned"
    features = study.feature_maps(text, feature_steps) if learned else {}
    sums = study.compare(text, features, "gates")
    tested = study.compare(held_out, features, "held-out error")
    gates = _gates(info.layers, compressive, features, sums, tested)
    kept = keep_what_helps(
        gates, lambda g: held_out_loss(model, info, config, held_out, g, watch, "held-out loss")
    )
    layers = tuple(_report(spec.index, tested.get(spec.index), gates, kept) for spec in info.layers)
    return Calibration(
        kept.gates, layers, kept, sum(map(len, text)), sum(map(len, held_out)), context
    )


def check_model(model: PreTrainedModel, info: ModelInfo, config: MemoryConfig) -> Compressive:
    """Refuse what cannot be calibrated; gives the settings of the compressive memory.

    Raises:
        ConfigError: see `calibrate`.
    """
    check_fit(config, info)
    if config.compressive is None:
        raise ConfigError(
            "these settings have no compressive memory to calibrate; set MemoryConfig.compressive"
        )
    if len({spec.heads for spec in info.layers}) > 1:
        raise ConfigError(
            "the layers of this model differ in their number of heads, and gates are one "
            "[layers, heads] table; calibrate a model with equal layers"
        )
    for name, weight in model.named_parameters():
        if not bool(torch.isfinite(weight).all()):
            raise ConfigError(
                f"the weight {name!r} of this model holds NaN or infinite values, from which no gate "
                "follows; load sound weights, or another dtype"
            )
    sigma, chunk = config.compressive.feature_map, segment_of(config) or config.compressive.chunk
    warn_if_fixed(config.compressive.rule, sigma, chunk)
    return config.compressive


def _gates(
    specs: tuple[LayerSpec, ...],
    config: Compressive,
    features: dict[int, Tensor],
    sums: Sums,
    tested: Sums,
) -> Gates:
    """The best of each head, closed where held-out text does not bear it out."""
    shape = (len(specs), specs[0].heads)
    gate, offset = torch.zeros(shape), torch.full(shape, -torch.inf)
    by_lse = config.mix == "lse"
    for i, found in sums.items():
        if by_lse:
            offset[i] = found.offset()
        else:
            gate[i] = found.gate()
        before, after = tested[i].errors(gate[i], offset[i] if by_lse else None)
        worse = after >= before
        gate[i, worse], offset[i, worse] = 0, -torch.inf
    if by_lse:
        return Gates((offset > -torch.inf).float(), offset, features=features)
    return Gates(gate, features=features)


def _report(layer: int, tested: MixStatistics | None, gates: Gates, kept: Kept) -> LayerReport:
    if tested is None:  # a layer with a sliding window of its own
        return LayerReport(layer, 0, 0.0, 0.0, 0.0, None, False)
    gate, offset = gates.gate[layer], None if gates.offset is None else gates.offset[layer]
    share = tested.mean_share(gate, offset)
    before, after = (float(each.sum()) for each in tested.errors(gate, offset))
    return LayerReport(
        layer=layer,
        heads_open=int(open_heads(gates)[layer].sum()),
        share=float(share.mean()),
        share_most=float(share.max()),
        removed=1 - after / before if before > 0 else 0.0,
        loss_alone=kept.alone.get(layer),
        kept=layer in kept.layers,
    )
