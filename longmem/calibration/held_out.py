"""What the gates do to the model as a whole: its loss on text that is read as the engine reads it."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.attention import ModelInfo
from longmem.calibration.passes import read
from longmem.calibration.report import Watch, unwatched
from longmem.config import MemoryConfig
from longmem.memory import ForwardPass, Gates, SessionMemory


def held_out_loss(
    model: PreTrainedModel,
    info: ModelInfo,
    config: MemoryConfig,
    ids: Tensor,
    gates: Gates | None,
    watch: Watch = unwatched,
    stage: str = "loss",
) -> float:
    """Mean loss of all tokens but the first, in nats.

    The text is one stream, however long: memory starts empty and is never reset.

    Args:
        model, info: attached, and what was measured on it.
        config: settings of the memory.
        ids: ``[N]`` tokens.
        gates: of the compressive memory; None leaves it closed.
        watch, stage: told of the tokens read.
    """
    memory = SessionMemory(info.layers, config, config.n_init, gates=gates, journal=False)
    total, next_ids = 0.0, ids[1:].long()
    passes = read(model, memory, ids, lambda r: ForwardPass([(memory, r)]), all_logits=True)
    for part, logits in passes:
        wanted = next_ids[part].to(logits.device)
        total += float(_loss(logits[: len(wanted)], wanted))
        watch(stage, part.stop, len(ids))
    return total / len(next_ids)


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
