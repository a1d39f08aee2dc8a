"""A model's forward pass compiled by torch: everything between the attention of two layers fused.

At one token per session a decoder is bound by reading its weights, and transformers' own code adds
some 45 small kernels a layer (norms in eight pieces, a rotation by angle zero, the gated activation,
residuals), each of which costs a GPU more time to begin than to do. The compiler makes a few of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.memory import AttentionCall
from longmem.routing import closed_to_compiler, current

_FORMS = 64
"""Compiled forms there may be, one for each number of tokens; torch's own limit is 8."""


class Compiled:
    """Called as the model it was made of; compiles anew for every number of tokens.

    Its results differ from the model's by rounding: fused operations keep intermediate values in
    float32 that the model's own code rounds.

    Args:
        model: attached to longmem (`longmem.attention.attach`).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        _declare()
        self._run: Callable[..., Any] = torch.compile(model.forward, fullgraph=True, dynamic=False)

    def __call__(self, **arguments: Any) -> Any:
        with closed_to_compiler(), torch._dynamo.config.patch(recompile_limit=_FORMS):
            return self._run(**arguments)


@cache
def _declare() -> None:
    """Tell torch of ``longmem::attend``, once per process: what it does is up to the router."""
    schema = (
        "(Tensor query, Tensor key, Tensor value, int layer, float scaling, float? softcap, "
        "Tensor? sinks) -> Tensor"
    )
    op: Any = torch.library.custom_op("longmem::attend", _attend, mutates_args=(), schema=schema)
    op.register_fake(_like)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    call = AttentionCall(scaling, softcap, sinks)
    made: Tensor = current().attend(layer, query, key, value, call)
    return made.clone(memory_format=torch.contiguous_format)  # the router may use its memory again


def _like(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layer: int,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    batch, heads, tokens, dim = query.shape
    return query.new_empty(batch, tokens, heads, dim)
