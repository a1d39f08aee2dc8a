"""Time to the first token after a stored session is opened in a new process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from longmem.bench.chat_stream import Report, Talk, silent
from longmem.bench.child import EngineSpec, ask_child
from longmem.bench.footprint import drop_page_cache
from longmem.bench.shelf import SESSION, Shelf, taken
from longmem.engine import Engine
from longmem.session import Session
from longmem.store import Store

QUESTION = "How was your day?"
LIVE_REPLIES = 9
"""Replies of the resumed session that are taken as those of a live one."""


@dataclass(frozen=True)
class Resumed:
    """One session, opened in a process that had never seen it.

    Args:
        history: tokens held.
        open_s: seconds of `Engine.session`.
        first_token_s: from there to the first token of the reply, opening included.
        live_s: seconds to the first token of a session that is open: median.
        window_s: seconds to read the keys and values of the window from the store.
        window_bytes: of these.
        reread_tokens: of the history that the model was fed again.
        sample_tokens, sample_s: reading so many tokens of it again from text: what a process
            without the store has to do with all of them.
        cold: whether the system was asked to forget the files before they were read.
    """

    history: int
    open_s: float
    first_token_s: float
    live_s: float
    window_s: float
    window_bytes: int
    reread_tokens: int
    sample_tokens: int
    sample_s: float
    cold: bool

    @property
    def transcript_s(self) -> float:
        """Seconds to read the whole transcript at the sample's rate."""
        return self.history * self.sample_s / self.sample_tokens

    def row(self) -> dict[str, object]:
        """JSON-able, with the ratios."""
        return {
            **asdict(self),
            "transcript_s": self.transcript_s,
            "transcript_to_resume": self.transcript_s / self.first_token_s,
            "resume_to_live_and_window": self.first_token_s / (self.live_s + self.window_s),
            "allowed_s": 1.5 * self.live_s + self.window_s,
        }


@dataclass(frozen=True)
class ResumeRun:
    """By length, shortest first; of each the round with the median time to the first token."""

    rows: Sequence[Resumed]

    def figures(self) -> dict[str, object]:
        """The figures as a JSON-able object."""
        first, last = self.rows[0], self.rows[-1]
        return {
            "rows": [row.row() for row in self.rows],
            "longest_to_shortest": last.first_token_s / first.first_token_s,
            "reread_tokens": sum(row.reread_tokens for row in self.rows),
        }


def measure(
    spec: EngineSpec,
    shelf: Shelf,
    lengths: Sequence[int],
    rounds: int = 3,
    sample_tokens: int = 20_000,
    report: Report = silent,
) -> ResumeRun:
    """Open each history `rounds` times, each time in a new process.

    Args:
        spec: of the engine that the processes load.
        shelf: holds a history of each of `lengths`.
        sample_tokens: of the transcript that is read again for comparison.
    """
    found: dict[int, list[Resumed]] = {tokens: [] for tokens in sorted(lengths)}
    for at in range(rounds):
        for tokens, resumed in found.items():
            with taken(shelf, tokens) as folder:
                most = min(tokens, sample_tokens)
                got = ask_child("resume", spec, folder=str(folder), sample_tokens=most)
                resumed.append(Resumed(**got))
        report(f"resume: round {at + 1} of {rounds}")
    return ResumeRun([_median(resumed) for resumed in found.values()])


def resume_here(engine: Engine, folder: Path, sample_tokens: int) -> Resumed:
    """Resume the session in the store at `folder`, in this process, which must not have read it.

    Args:
        engine: loaded and warm.
        sample_tokens: of the transcript to read again.
    """
    from longmem.stores import SQLiteStore

    cold = drop_page_cache(folder)
    with SQLiteStore(folder) as store:
        fed, started = engine.tokens_read, time.perf_counter()
        with engine.session(SESSION, store=store) as session:
            opened = time.perf_counter() - started
            first = opened + _first_token(session)
            fed_first = engine.tokens_read - fed
            _first_token(session)
            fed_again = engine.tokens_read - fed - fed_first
            live = statistics.median(_first_token(session) for _ in range(LIVE_REPLIES))
            stats = session.stats()
        drop_page_cache(folder)
        span = (stats.tokens - stats.window, stats.tokens)
        window_bytes, window = _read_window(store, len(engine.info.layers), span)
    sample, seconds = _read_again(engine, sample_tokens)
    return Resumed(
        history=stats.tokens,
        open_s=opened,
        first_token_s=first,
        live_s=live,
        window_s=window,
        window_bytes=window_bytes,
        reread_tokens=fed_first - fed_again,
        sample_tokens=sample,
        sample_s=seconds,
        cold=cold,
    )


def _first_token(session: Session) -> float:
    """Seconds to the first token of a reply that is not remembered."""
    reply = session.ask(QUESTION, commit=False, max_new_tokens=1, eos_token_id=())
    return reply.timings.first_token


def _read_window(store: Store, layers: int, span: tuple[int, int]) -> tuple[int, float]:
    """Bytes and seconds of the window's keys and values, read from the store alone."""
    with closing(store.open(SESSION)) as handle:
        started = time.perf_counter()
        size = sum(handle.read_kv(layer, *span).nbytes for layer in range(layers))
        return size, time.perf_counter() - started


def _read_again(engine: Engine, tokens: int) -> tuple[int, float]:
    """Tokens and seconds of reading a conversation into a session that lives in memory alone."""
    with engine.session("again") as session:
        turns = Talk(engine).part(session, tokens)
        started = time.perf_counter()
        read = session.add(turns)
        return sum(turn.tokens for turn in read), time.perf_counter() - started


def _median(rounds: Sequence[Resumed]) -> Resumed:
    return sorted(rounds, key=lambda each: each.first_token_s)[len(rounds) // 2]
