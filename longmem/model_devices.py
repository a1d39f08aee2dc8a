"""Where a model's ends lie: one device, several, or none until a weight is used.

With a ``device_map`` accelerate's hooks bring what a layer is given to the layer's device, and weights
that were offloaded to where the layer computes; until then those are tensors without values ("meta").
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def input_device(model: PreTrainedModel) -> torch.device:
    """The device token ids are given to the model on."""
    embedding = cast(nn.Module, model.get_input_embeddings())
    weight = cast(Tensor, embedding.weight)
    if not weight.is_meta:
        return weight.device
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return (
        torch.device("cuda", device) if isinstance(device, int) else torch.device(device or "cpu")
    )


def logits_to_keep(model: PreTrainedModel, ids: Tensor, last: Tensor) -> Tensor | list[int] | int:
    """Which tokens' logits are wanted, as the model can use it.

    Where its head lies on another device than its ids, no tensor of indices fits both ends of the
    pass (hooks take all tensors to the first device), but numbers do.

    Args:
        ids: ``[1, T]`` the pass's tokens.
        last: ``[n]`` indices of those wanted.
    """
    head = cast(nn.Module, model.get_output_embeddings())
    if cast(Tensor, head.weight).device == last.device:
        return last
    return 1 if ids.shape[1] == 1 else cast("list[int]", last.tolist())


def values_of(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A parameter or buffer with its values, wherever they were offloaded to.

    Args:
        name: its name in the model.
        tensor: it, perhaps without values.
    """
    if not tensor.is_meta:
        return tensor
    path, _, own = name.rpartition(".")
    hook: Any = getattr(model.get_submodule(path), "_hf_hook", None)
    return cast(Tensor, hook.weights_map[own])
