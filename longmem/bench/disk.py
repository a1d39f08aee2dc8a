"""What a history takes on disk: files, bytes written for them, and bytes under each codec."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from longmem.bench.chat_stream import Report, Talk, silent
from longmem.bench.shelf import SESSION
from longmem.bench.stream import Sample
from longmem.engine import Engine

CODECS = ("bf16", "int8", "int4")
PAYLOAD = ("codes.", "key_scales.", "value_scales.")
"""Names, to the first dot, of the tensors that hold blocks under a codec."""


@dataclass(frozen=True)
class Coded:
    """Closed blocks of one session under a codec.

    Args:
        codec: its name in `MemoryConfig.codec`.
        tokens: of the session.
        rows: encoded tokens, summed over the layers that keep blocks.
        payload_bytes: of all that is stored of the blocks that are encoded.
        bf16_bytes: of the keys and values of these blocks in bfloat16.
    """

    codec: str
    tokens: int
    rows: int
    payload_bytes: int
    bf16_bytes: int

    @property
    def ratio(self) -> float | None:
        """payload_bytes / bf16_bytes; None while no group of blocks is complete."""
        return self.payload_bytes / self.bf16_bytes if self.bf16_bytes else None


def disk_figures(samples: Sequence[Sample]) -> dict[str, object]:
    """What lies on disk at the end of a stream, and what was written on the way. JSON-able."""
    last = samples[-1]
    return {
        "tokens": last.tokens,
        "turns": last.turns,
        "tokens_per_turn": last.tokens / last.turns,
        "files": last.files,
        "file_bytes": last.file_bytes,
        "kv_bytes": last.kv_bytes,
        "files_to_kv": last.file_bytes / last.kv_bytes,
        "files_written": last.files_written,
        "written_to_kv": last.files_written / last.kv_bytes,
        "database_bytes": last.database_bytes,
        "database_to_kv": last.database_bytes / last.kv_bytes,
        "database_written": last.other_written,
        "database_written_to_kv": (
            None if last.other_written is None else last.other_written / last.kv_bytes
        ),
        "by_history": [
            {"tokens": s.tokens, "files": s.files, "written_to_kv": s.files_written / s.kv_bytes}
            for s in samples
        ],
    }


def coded(
    engine: Engine, codecs: Sequence[str], tokens: int, folder: Path, report: Report = silent
) -> list[Coded]:
    """Store one history under each codec, and count what its closed blocks take.

    Args:
        tokens: of the history; groups of blocks that are not complete are not counted.
        folder: where the stores lie.
    """
    found = []
    for codec in codecs:
        config = engine.config.replace(codec=codec)
        under = Engine(engine.model, engine.tokenizer, config, engine.segment_tokens)
        found.append(_stored(under, codec, tokens, folder / codec))
        report(f"disk: {tokens:,} tokens stored under {codec}")
    return found


def coded_figures(found: Sequence[Coded]) -> list[dict[str, object]]:
    """One JSON-able row per codec."""
    return [{**asdict(each), "payload_to_bf16": each.ratio} for each in found]


def _stored(engine: Engine, codec: str, tokens: int, folder: Path) -> Coded:
    from longmem.stores import SQLiteStore

    with SQLiteStore(folder) as store:
        with engine.session(SESSION, store=store) as session:
            Talk(engine).read_to(session, tokens, lambda held: None)
            held = session.stats().tokens
        with closing(store.open(SESSION)) as handle:
            snapshot = handle.snapshot()
        assert snapshot is not None
        parts = {name: t for name, t in snapshot.blocks.items() if name.startswith(PAYLOAD)}
    codes = {int(name.split(".")[1]): len(t) for name, t in parts.items() if name[:6] == "codes."}
    layers = engine.info.layers
    return Coded(
        codec=codec,
        tokens=held,
        rows=sum(codes.values()),
        payload_bytes=sum(t.nbytes for t in parts.values()),
        bf16_bytes=sum(
            n * layers[i].bytes_per_token * 2 // layers[i].dtype.itemsize for i, n in codes.items()
        ),
    )
