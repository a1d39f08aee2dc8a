"""What a process holds and writes while one session reads on and on, exchange by exchange."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from longmem.bench.chat_stream import Report, silent
from longmem.bench.footprint import FilesWritten, bytes_written, on_disk, resident
from longmem.bench.shelf import Shelf
from longmem.engine import Engine
from longmem.session import Session

SAMPLES = 50
"""How often a stream is looked at."""


@dataclass(frozen=True)
class Sample:
    """One look at the process and its store.

    Args:
        tokens, turns: the session holds, and has committed.
        seconds: since the stream began.
        resident, peak: bytes of main memory; `resident` is None where the system does not tell.
        bytes_device, bytes_host: as `longmem.SessionStats`.
        kv_bytes: bytes of the keys and values of all these tokens, in the model's dtype.
        files, file_bytes, database_bytes: what lies on disk now.
        files_written: bytes of all files that were ever put into the store, merged ones included.
        other_written: all other bytes the process wrote, the database's; None where the system does
            not tell.
    """

    tokens: int
    turns: int
    seconds: float
    resident: int | None
    peak: int
    bytes_device: int
    bytes_host: int
    kv_bytes: int
    files: int
    file_bytes: int
    database_bytes: int
    files_written: int
    other_written: int | None


def stream(
    engine: Engine, shelf: Shelf, lengths: Sequence[int], report: Report = silent
) -> list[Sample]:
    """Fill the shelf with these lengths, in one process and one session, and look at it meanwhile.

    The session is closed and opened again where a length is reached and its store is copied.
    """
    samples: list[Sample] = []
    look = _Look(engine, shelf)
    last = max(lengths)
    every = max(1, last // SAMPLES)

    def after(held: int, session: Session) -> None:
        before = samples[-1].tokens if samples else 0
        if held // every > before // every or held >= last:
            samples.append(look.at(session))

    try:
        shelf.fill(lengths, report, after)
    finally:
        look.close()
    return samples


class _Look:
    """Takes samples; counts from when it is made."""

    def __init__(self, engine: Engine, shelf: Shelf) -> None:
        self._row = sum(spec.bytes_per_token for spec in engine.info.layers)
        self._shelf = shelf
        self._files = FilesWritten(shelf.growing / "files")
        self._written, self._started = bytes_written(), time.perf_counter()
        self.close = self._files.close

    def at(self, session: Session) -> Sample:
        """The process and the session as they are now."""
        stats, memory, disk = session.stats(), resident(), on_disk(self._shelf.growing)
        return Sample(
            tokens=stats.tokens,
            turns=stats.turns,
            seconds=time.perf_counter() - self._started,
            resident=memory.now,
            peak=memory.peak,
            bytes_device=stats.bytes_device,
            bytes_host=stats.bytes_host,
            kv_bytes=self._row * stats.tokens,
            files=disk.files,
            file_bytes=disk.file_bytes,
            database_bytes=disk.database_bytes,
            files_written=self._files.bytes,
            other_written=self._others(),
        )

    def _others(self) -> int | None:
        now = bytes_written()
        if now is None or self._written is None:
            return None
        return now - self._written - self._files.bytes - self._shelf.bytes_copied
