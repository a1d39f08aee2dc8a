"""Reading a text through any router, pass by pass, as the engine would."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.attention import forward
from longmem.config import MemoryConfig
from longmem.memory import Reading, ReadSpan, SessionMemory
from longmem.model_devices import input_device
from longmem.routing import Router

_PASS = 512  # tokens; only a matter of speed and of room for logits


def read(
    model: PreTrainedModel,
    memory: SessionMemory,
    ids: Tensor,
    router: Callable[[Reading], Router],
    all_logits: bool = False,
) -> Iterator[tuple[slice, Tensor]]:
    """Read `ids` ``[N]`` into a memory.

    Args:
        model: attached.
        memory: told of the tokens; whether it takes them in is the router's business.
        ids: on any device.
        router: of a pass.
        all_logits: whether the logits of every token are wanted, or those of the last.

    Yields:
        After each pass, which tokens it read, and logits ``[T, V]`` or ``[1, V]``.
    """
    config = memory.config
    expects = memory.text is not None
    size = min(_PASS, config.n_local - config.block_size) if expects else _PASS
    device = input_device(model)
    for start in range(0, len(ids), size):
        part = slice(start, min(start + size, len(ids)))
        tokens = ids[part].to(device)
        reading = memory.prepare(_spans(len(tokens), config))
        n = len(tokens)
        last = torch.arange(n if all_logits or expects else 1, device=device)
        last = last if all_logits or expects else last + n - 1
        logits = forward(model, tokens[None], router(reading), last)
        if expects:
            memory.see(reading, tokens, logits)
        memory.advance(reading)
        yield part, logits


def _spans(tokens: int, config: MemoryConfig) -> list[ReadSpan]:
    sizes = [min(config.lookup_span, tokens - at) for at in range(0, tokens, config.lookup_span)]
    return [ReadSpan(n, n) for n in sizes]
