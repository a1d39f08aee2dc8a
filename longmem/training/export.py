"""Writing a trained model so that `longmem.Engine` loads it with its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from longmem.config import Compressive
from longmem.gate_file import save_gates
from longmem.memory import Gates
from longmem.training.model import SegmentRecurrent

GATES = "gates.safetensors"


@torch.no_grad()
def export(recurrent: SegmentRecurrent, folder: str | Path, tokenizer: Any = None) -> Path:
    """Write the model as transformers does, and its gate file beside it.

    An engine reads both with the settings the model was trained for:
    ``MemoryConfig.preset("infini", n_local=segment, compressive=Compressive(rule=..., feature_map=...,
    gates=str(path)))``.

    Args:
        recurrent: the trained model.
        folder: made if needed.
        tokenizer: saved too if given.

    Returns:
        The path of the gate file. Its metadata names rule, feature map, mix and segment, and the
        weights it belongs to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recurrent.model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    weights = zip(recurrent.specs, recurrent.feature_weights, strict=False)
    gates = Gates(recurrent.gate, features={spec.index: weight for spec, weight in weights})
    made_for = Compressive.model_validate(
        {"rule": recurrent.rule, "feature_map": recurrent.feature_map, "mix": "gate"}
    )
    file = folder / GATES
    save_gates(file, gates, recurrent.model, made_for, recurrent.segment)
    return file
