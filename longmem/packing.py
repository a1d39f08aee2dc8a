"""One forward pass over the feeds of several sessions, packed one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.attention import forward
from longmem.feeding import Fed, Feed
from longmem.memory import ForwardPass, Reading, Scratch

Outcome = Fed | Exception
"""What came of a feed, or why its session's part of the pass failed."""


@torch.no_grad()
def run_packed(
    model: PreTrainedModel, feeds: Sequence[Feed], surprise: bool, scratch: Scratch
) -> list[Outcome]:
    """Read the feeds in one pass; none of their sessions sees another.

    What fails in one session's part does not disturb the others; its memory has to be rewound. If
    the pass itself fails, all memories have to be.

    Args:
        model: attached to longmem.
        feeds: of different memories.
        surprise: the memories close blocks where the text surprises the model, and have to see the
            logits of every token.
        scratch: buffers of the engine's passes.
    """
    ready, outcomes = [], dict[int, Outcome]()
    for i, feed in enumerate(feeds):
        try:
            ready.append((i, feed, _prepare(feed)))
        except Exception as error:
            outcomes[i] = error
    if ready:
        _read(model, ready, surprise, scratch, outcomes)
    return [outcomes[i] for i in range(len(feeds))]


def _prepare(feed: Feed) -> Reading:
    return feed.memory.prepare(feed.spans, feed.turn_starts, trace=feed.trace, decide=feed.decide)


def _read(
    model: PreTrainedModel,
    parts: Sequence[tuple[int, Feed, Reading]],
    surprise: bool,
    scratch: Scratch,
    outcomes: dict[int, Outcome],
) -> None:
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[i for _, feed, _ in parts for i in feed.ids]], device=device)
    run = ForwardPass([(feed.memory, reading) for _, feed, reading in parts], scratch)
    stops = torch.tensor([len(feed.ids) for _, feed, _ in parts]).cumsum(0)
    wanted = torch.arange(int(stops[-1])) if surprise else stops - 1
    logits = forward(model, ids, run, wanted.to(device))
    if surprise:
        _see(parts, run.failed, ids[0], logits)
        logits = logits[(stops - 1).to(device)]
    run.finish()
    best = logits.argmax(-1).tolist() if any(feed.best for _, feed, _ in parts) else None
    for n, (i, feed, reading) in enumerate(parts):
        likeliest = best[n] if best is not None and feed.best else None
        outcomes[i] = run.failed.get(n) or Fed(logits[n], reading, likeliest)


def _see(
    parts: Sequence[tuple[int, Feed, Reading]],
    failed: dict[int, Exception],
    ids: Tensor,
    logits: Tensor,
) -> None:
    """Let each memory compare what the model expected with what came: ids ``[sum T]``, logits
    ``[sum T, V]``."""
    start = 0
    for n, (_, feed, reading) in enumerate(parts):
        at = slice(start, start + reading.tokens)
        if n not in failed:
            feed.memory.see(reading, ids[at], logits[at])
        start = at.stop
