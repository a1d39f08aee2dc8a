"""Writing a trained model so that `longmem.Engine` loads it with its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from longmem.fingerprint import weight_hash
from longmem.training.model import SegmentRecurrent

GATES = "gates.safetensors"


@torch.no_grad()
def export(recurrent: SegmentRecurrent, folder: str | Path, tokenizer: Any = None) -> Path:
    """Write the model as transformers does, and its gates beside it.

    The gate file holds ``gate`` [L, H] float32 in [0, 1] and, for learned feature maps,
    ``features.<layer>`` [H_kv, D, D]; its metadata says which rule, feature map, way to mix and
    segment they were trained with, and the hash of the weights they belong to.

    Args:
        recurrent: the trained model.
        folder: made if needed.
        tokenizer: saved too if given.

    Returns:
        The path of the gate file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    recurrent.model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    tensors = {"gate": recurrent.gate.float().cpu().contiguous()}
    for spec, weight in zip(recurrent.specs, recurrent.feature_weights, strict=False):
        tensors[f"features.{spec.index}"] = weight.float().cpu().contiguous()
    metadata = {
        "rule": recurrent.rule,
        "feature_map": recurrent.feature_map,
        "mix": "gate",
        "segment": str(recurrent.segment),
        "weights": weight_hash(recurrent.model),
    }
    save_file(tensors, folder / GATES, metadata=metadata)
    return folder / GATES
