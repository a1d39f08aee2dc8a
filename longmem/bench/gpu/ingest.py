"""How fast a history is read, as a share of what the matrix units can do."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from longmem.bench.gpu.history import History, Stretch
from longmem.bench.gpu.model import engine_with
from longmem.bench.gpu.rates import Rates
from longmem.bench.gpu.shapes import Shape
from longmem.engine import Engine

FORMULA = (
    "per token 2 FLOPs per weight of the layers (embedding and output left out: a pass of reading "
    "needs no logits but its last token's), and 4 H D FLOPs per layer and attended key: initial "
    "tokens, looked-up blocks and window, as many as there are at that length; scoring is not counted"
)


@dataclass(frozen=True)
class IngestRun:
    """The stretches of all histories.

    Args:
        segment_tokens: tokens of a forward pass.
        tried: tokens per second by tokens of a forward pass, over a short history.
        stretches: by codec, in order.
        flops: per token, by stretch.
        matrix: measured operations per second.
    """

    segment_tokens: int
    tried: dict[int, float]
    stretches: dict[str, list[Stretch]]
    flops: dict[str, list[float]]
    matrix: float

    @property
    def each(self) -> list[tuple[str, Stretch, float]]:
        """Codec, stretch, and its operations per token, in order."""
        return [
            (codec, stretch, flops)
            for codec, parts in self.stretches.items()
            for stretch, flops in zip(parts, self.flops[codec], strict=True)
        ]

    @property
    def shares(self) -> list[float]:
        """Of the matrix rate, of each stretch that did not begin with an empty memory."""
        full = [found for found in self.each if found[1].start] or self.each
        return [stretch.tokens_per_s * flops / self.matrix for _, stretch, flops in full]

    @property
    def share(self) -> float | None:
        """Median of them."""
        return median(self.shares) if self.shares else None

    def row(self) -> dict[str, object]:
        """JSON-able."""
        rows = [
            {
                "codec": codec,
                **stretch.row(),
                "flops_per_token": flops,
                "share": stretch.tokens_per_s * flops / self.matrix,
            }
            for codec, stretch, flops in self.each
        ]
        tried = {str(n): rate for n, rate in self.tried.items()}
        return {
            "formula": FORMULA,
            "segment_tokens": self.segment_tokens,
            "tried_tokens_per_s": tried,
            "stretches": rows,
            "share": self.share,
            "least_share": min(self.shares, default=None),
        }


def flops_per_token(engine: Engine, start: int, stop: int) -> float:
    """Multiplications and additions of one token among those of ``start .. stop``; see `FORMULA`."""
    model, config = engine.model, engine.config
    skipped = {
        id(table.weight) for table in (model.get_input_embeddings(), model.get_output_embeddings())
    }
    weights = sum(int(p.numel()) for p in model.parameters() if id(p) not in skipped)
    most = config.n_init + config.topk * config.block_size + config.n_local
    attended = sum(min(at, most) for at in range(start, stop)) / (stop - start)
    per_key = sum(4 * spec.heads * spec.dim for spec in engine.info.layers)
    return 2.0 * weights + per_key * attended


def fastest_segment(engine: Engine, shape: Shape) -> dict[int, float]:
    """Tokens per second by tokens of a forward pass, behind a full window."""
    config = engine.config
    warm = max(shape.segments) + config.n_local + config.topk * config.block_size
    tried = {}
    for tokens in shape.segments:
        history = History(engine_with(engine, config, tokens), shape)
        for _ in history.read_to(warm):
            pass
        parts = list(history.read_to(warm + 4 * max(shape.segments)))
        read = sum(part.stop - part.start for part in parts)
        tried[tokens] = 1000 * read / sum(part.ms for part in parts)
    return tried


def fastest(tried: dict[int, float]) -> int:
    """The segment that was read fastest."""
    return max(tried, key=tried.__getitem__)


def ingest_run(
    engine: Engine, tried: dict[int, float], stretches: dict[str, list[Stretch]], rates: Rates
) -> IngestRun:
    """The run with the operations counted."""
    counted = {
        codec: [flops_per_token(engine, part.start, part.stop) for part in parts]
        for codec, parts in stretches.items()
    }
    return IngestRun(engine.segment_tokens, tried, stretches, counted, rates.matrix)
