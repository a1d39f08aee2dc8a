"""What the gates do to the model as a whole: its loss on text that is read as the engine reads it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.attention import ModelInfo
from longmem.calibration.passes import read
from longmem.calibration.report import Watch, unwatched
from longmem.config import MemoryConfig
from longmem.memory import ForwardPass, Gates, Reading, SessionMemory


def held_out_loss(
    model: PreTrainedModel,
    info: ModelInfo,
    config: MemoryConfig,
    texts: Sequence[Tensor],
    gates: Gates | None,
    watch: Watch = unwatched,
    stage: str = "loss",
) -> float:
    """Mean loss of all tokens but the first of each text, in nats.

    Each text is one stream, however long: memory starts empty and is never reset.

    Args:
        model, info: attached, and what was measured on it.
        config: settings of the memory.
        texts: each ``[N]`` tokens.
        gates: of the compressive memory; None leaves it closed.
        watch, stage: told of the tokens read.
    """
    total, start, length = 0.0, 0, sum(map(len, texts))
    for ids in texts:
        memory = SessionMemory(info.layers, config, config.n_init, gates=gates, journal=False)
        router = partial(_through, memory)
        for part, logits in read(model, memory, ids, router, all_logits=True):
            wanted = ids[1:][part].to(logits.device)
            total += float(_loss(logits[: len(wanted)], wanted))
            watch(stage, start + part.stop, length)
        start += len(ids)
    return total / (length - len(texts))


def _through(memory: SessionMemory, reading: Reading) -> ForwardPass:
    return ForwardPass([(memory, reading)])


def _loss(logits: Tensor, wanted: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
