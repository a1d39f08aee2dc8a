"""Perplexity of a long text through a memory, and how much of it the memory is worth.

The text is read in look-up spans. While reading, a span's blocks are chosen by the queries of the
span itself, so the choice for its first token knows its last: as a measure of prediction that would
be cheating. So every span is read twice. First with the blocks on hand, which the queries of the
span before chose; these logits are scored. Then the memory is rewound and the span read as
always, choosing by its own queries, for the next one to use. What scores a token has thus
seen nothing but tokens before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from statistics import fmean, stdev

import torch
from torch import Tensor

from longmem.attention import forward
from longmem.bench.methods import Method
from longmem.bench.room import check_room
from longmem.bench.watch import Unwatched, Watch
from longmem.engine import Engine
from longmem.errors import ConfigError
from longmem.first_tokens import first_tokens
from longmem.memory import ForwardPass, ReadSpan, SessionMemory


@dataclass(frozen=True)
class TextScore:
    """One memory over one text.

    Args:
        spans: nats of the scored tokens, by look-up span.
        seconds: of the whole run, which reads everything twice.
    """

    spans: list[list[float]]
    seconds: float

    @property
    def nats(self) -> list[float]:
        """Negative log-likelihood of each scored token."""
        return [value for span in self.spans for value in span]

    @property
    def nats_per_token(self) -> float:
        """Their mean."""
        return fmean(self.nats)

    @property
    def perplexity(self) -> float:
        """e to the mean."""
        return exp(self.nats_per_token)


@dataclass(frozen=True)
class Difference:
    """Nats per token of one memory less those of another on the same tokens, with the half-width of
    its 95 % interval. Below 0 the first predicts better."""

    nats: float
    margin: float


def read_text(engine: Engine, text: str, tokens: int) -> list[int]:
    """The first `tokens` token ids of a text.

    Raises:
        ConfigError: there are fewer.
    """
    ids = first_tokens(engine.tokenizer, text, tokens)
    if len(ids) < tokens:
        raise ConfigError(
            f"the text has {len(ids):,} tokens, fewer than {tokens:,}; lower --tokens"
        )
    return ids


def measure(
    engine: Engine,
    compared: Sequence[Method],
    ids: Sequence[int],
    scored_from: int,
    span: int,
    watch: Watch | None = None,
) -> dict[str, TextScore]:
    """`score_text` under each memory, by name; in spans that all of them can read at once."""
    watch, scores = watch or Unwatched(), {}
    engines = {
        m.name: Engine(engine.model, engine.tokenizer, m.config, engine.segment_tokens)
        for m in compared
    }
    size = min(under.spans(span)[0].tokens for under in engines.values())
    for name, under in engines.items():
        advice = "take fewer --tokens or leave this preset out"
        check_room(under, f"preset {name}", len(ids), advice=advice)
        watch.begin(name, len(ids))
        scores[name] = score_text(under, ids, scored_from, size, watch)
    return scores


def score_text(
    engine: Engine, ids: Sequence[int], scored_from: int, span: int, watch: Watch | None = None
) -> TextScore:
    """Read a text and score its tokens from position `scored_from` on.

    Args:
        span: tokens read under one choice of blocks; no more than `Engine.spans` allows.

    Raises:
        ConfigError: there is nothing to score.
    """
    if not 1 <= scored_from < len(ids):
        raise ConfigError(
            f"there is nothing to score from token {scored_from:,} on in {len(ids):,} tokens; "
            "lower --from (1 is the first that can be predicted)"
        )
    watch, started, done = watch or Unwatched(), time.perf_counter(), 0
    spans = []
    for nats in losses(engine, ids, span):
        first = max(0, scored_from - done)
        done += len(nats)
        watch.read(done)
        if first < len(nats):
            spans.append(nats[first:].tolist())
    return TextScore(spans, time.perf_counter() - started)


def losses(engine: Engine, ids: Sequence[int], span: int) -> Iterator[Tensor]:
    """Nats ``[n]`` of the tokens of each span; that of the very first token, which nothing
    predicts, is 0."""
    memory = engine.new_memory()
    last: Tensor | None = None
    for at in range(0, len(ids), span):
        part = ids[at : at + span]
        before = memory.mark()
        logits = _read(engine, memory, part, voters=0 if at else len(part))
        known = logits if last is None else torch.cat((last, logits))
        targets = torch.tensor(part if last is not None else part[1:], device=known.device)
        nats = torch.nn.functional.cross_entropy(known[:-1], targets, reduction="none")
        last = logits[-1:]
        if at:
            memory.rewind(before)
            _read(engine, memory, part, voters=len(part))
            yield nats
        else:
            yield torch.cat((nats.new_zeros(1), nats))


def difference(first: TextScore, second: TextScore) -> Difference:
    """Compare token by token; spans are the units of its interval, for neighbouring tokens are not
    independent.

    Raises:
        ValueError: they did not score the same tokens.
    """
    spans = [
        [x - y for x, y in zip(a, b, strict=True)]
        for a, b in zip(first.spans, second.spans, strict=True)
    ]
    n, total = len(spans), sum(len(span) for span in spans)
    mean = sum(map(sum, spans)) / total
    residuals = [sum(span) - mean * len(span) for span in spans]  # a ratio estimate: spans differ
    margin = 1.96 * stdev(residuals) * sqrt(n) / total if n > 1 else float("inf")
    return Difference(mean, margin)


def _read(engine: Engine, memory: SessionMemory, ids: Sequence[int], voters: int) -> Tensor:
    """Read a span; logits ``[n, V]`` of all its tokens."""
    starts = [] if memory.n_tokens else [0]  # the text is one turn
    reading = memory.prepare([ReadSpan(len(ids), voters)], starts)
    run = ForwardPass([(memory, reading)])
    tokens = torch.tensor([list(ids)], device=engine.device)
    everywhere = torch.arange(len(ids), device=engine.device)
    logits = forward(engine.model, tokens, run, everywhere)
    if engine.config.block_boundaries == "surprise":
        memory.see(reading, tokens[0], logits)
    run.finish()
    return logits
