"""One forward pass over the feeds of several sessions, packed one behind the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longmem.attention import forward
from longmem.feeding import Fed, Feed
from longmem.graphs import Graph, StepGraphs
from longmem.graphs.lookups import close_due
from longmem.graphs.refreshes import RefreshGraphs
from longmem.memory import ForwardPass, Reading, Scratch
from longmem.model_devices import input_device

Outcome = Fed | Exception
"""What came of a feed, or why its session's part of the pass failed."""

_APART = 4
"""So many recycled steps go through a graph although others of the pass cannot. The weights are read
twice then; that costs a GPU no more than the host needs for that many sessions' bookkeeping, layer by
layer (estimated for 8 billion weights in 32 layers: 4 ms, and 1 ms a session)."""


@dataclass(frozen=True, eq=False)
class _Part:
    """One feed of a pass: its number, itself, and what its memory reads."""

    i: int
    feed: Feed
    reading: Reading


@torch.no_grad()
def run_packed(
    model: PreTrainedModel,
    feeds: Sequence[Feed],
    surprise: bool,
    scratch: Scratch,
    graphs: StepGraphs | None = None,
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
        graphs: what takes recycled steps, where it can; None: they are read as all others.
    """
    outcomes = dict[int, Outcome]()
    graph, through, looking = _through_graph(feeds, None if surprise else graphs)
    parts, steps = list[_Part](), list[_Part]()
    for i, feed in enumerate(feeds):
        try:
            part = _Part(i, feed, _prepare(feed, i in through))
        except Exception as error:
            outcomes[i] = error
        else:
            (steps if i in through else parts).append(part)
    said = None
    if graphs is not None and graph is not None and steps:
        memories = [part.feed.memory for part in steps]
        said = graphs.run(graph, memories, [part.feed.ids[0] for part in steps])
    if looking and graphs is not None and graphs.refreshes is not None:
        parts = _refresh(parts, looking, graphs.refreshes, outcomes)
    if parts:
        _read(model, parts, surprise, scratch, outcomes)
    if said is not None:
        for part in steps:
            part.feed.memory.stepped()
        _tell(steps, said.logits, said.best, outcomes)
    return [outcomes[i] for i in range(len(feeds))]


def _through_graph(
    feeds: Sequence[Feed], graphs: StepGraphs | None
) -> tuple[Graph | None, Collection[int], Collection[int]]:
    """The feeds that step through a graph, which one, and those that look up in another, if they can at
    this step."""
    if graphs is None:
        return None, (), ()
    taken = [i for i, feed in enumerate(feeds) if graphs.takes(feed)]
    refreshes = graphs.refreshes
    looking = [i for i, feed in enumerate(feeds) if refreshes is not None and refreshes.takes(feed)]
    few = 1 if len(taken) + len(looking) == len(feeds) else _APART
    looking = looking if len(looking) >= few else []
    if len(taken) < few:
        return None, (), looking
    graph = graphs.graph_for([feeds[i].memory for i in taken])
    return graph, () if graph is None else frozenset(taken), looking


def _refresh(
    parts: Sequence[_Part],
    looking: Collection[int],
    graphs: RefreshGraphs,
    outcomes: dict[int, Outcome],
) -> list[_Part]:
    """Read those of the parts that look up through a graph; gives the others, or all if it cannot."""
    own = list[_Part]()
    for part in parts:
        if part.i in looking:
            try:
                close_due(part.feed.memory, part.reading)
            except Exception as error:
                outcomes[part.i] = error
            else:
                own.append(part)
    there = [part for part in parts if part.i not in outcomes]
    ids = [part.feed.ids[0] for part in own]
    read = graphs.read([(part.feed.memory, part.reading) for part in own], ids)
    if read is None:
        return there
    said, failed = read
    _tell(own, said.logits, said.best, outcomes, failed)
    return [part for part in there if part.i not in looking]


def _prepare(feed: Feed, beside: bool) -> Reading:
    return feed.memory.prepare(
        feed.spans, feed.turn_starts, trace=feed.trace, decide=feed.decide, beside=beside
    )


def _read(
    model: PreTrainedModel,
    parts: Sequence[_Part],
    surprise: bool,
    scratch: Scratch,
    outcomes: dict[int, Outcome],
) -> None:
    device = input_device(model)
    read = torch.tensor([[i for part in parts for i in part.feed.ids]])
    ends = torch.tensor([len(part.feed.ids) for part in parts]).cumsum(0) - 1
    ids, last = scratch.upload("ids", read, device), scratch.upload("last", ends, device)
    run = ForwardPass([(part.feed.memory, part.reading) for part in parts], scratch)
    wanted = torch.arange(read.shape[1], device=device) if surprise else last
    logits = forward(model, ids, run, wanted)
    if surprise:
        _see(parts, run.failed, ids[0], logits)
        logits = logits[scratch.upload("last", ends, logits.device)]
    run.finish()
    best = logits.argmax(-1) if any(part.feed.best for part in parts) else None
    _tell(parts, logits, best, outcomes, run.failed)


def _tell(
    parts: Sequence[_Part],
    logits: Tensor,
    best: Tensor | None,
    outcomes: dict[int, Outcome],
    failed: Mapping[int, Exception] | None = None,
) -> None:
    """What came of each part: logits ``[S, V]``, and the likeliest tokens ``[S]`` where wanted."""
    wanted = best is not None and any(part.feed.best for part in parts)
    likeliest = best.tolist() if best is not None and wanted else []
    for n, part in enumerate(parts):
        own = likeliest[n] if part.feed.best else None
        outcomes[part.i] = (failed or {}).get(n) or Fed(logits[n], part.reading, own)


def _see(parts: Sequence[_Part], failed: dict[int, Exception], ids: Tensor, logits: Tensor) -> None:
    """Let each memory compare what the model expected with what came: ids ``[sum T]``, logits
    ``[sum T, V]``."""
    start = 0
    for n, part in enumerate(parts):
        at = slice(start, start + part.reading.tokens)
        if n not in failed:
            part.feed.memory.see(part.reading, ids[at], logits[at])
        start = at.stop
