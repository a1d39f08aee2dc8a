"""Time per reply token against the length of the history, measured in one run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longmem.bench.telling import dialogue, tell
from longmem.engine import Engine
from longmem.session import Session

REPLY_TOKENS = 64
"""Tokens of each measured reply; with the default stride, eight look-ups."""


@dataclass(frozen=True)
class DecodeTime:
    """Milliseconds per reply token at one length of the history: median of all rounds."""

    history: int
    ms_per_token: float
    rounds: int


def measure(
    engine: Engine,
    histories: Sequence[int],
    rounds: int = 15,
    report: Callable[[str], None] = lambda line: None,
) -> list[DecodeTime]:
    """One session per length of history; their rounds take turns, so that a slow minute of the
    machine meets all of them."""
    sessions: dict[int, Session] = {}
    for history in histories:
        sessions[history] = _filled(engine, history)
        report(f"read {sessions[history].stats().tokens:,} tokens")
    times: dict[int, list[float]] = {history: [] for history in histories}
    for session in sessions.values():
        _reply_ms(session)  # the first reply after reading warms caches
    for _ in range(rounds):
        for history, session in sessions.items():
            times[history].append(_reply_ms(session))
    return [
        DecodeTime(session.stats().tokens, statistics.median(times[history]), rounds)
        for history, session in sessions.items()
    ]


def _filled(engine: Engine, history: int) -> Session:
    session = engine.session(f"bench-{history}")
    tell(session, dialogue(engine, 0, history).turns)
    return session


def _reply_ms(session: Session) -> float:
    """Milliseconds per token of one reply after its first, which nothing remembers."""
    reply = session.ask(
        "How was your day?", commit=False, max_new_tokens=REPLY_TOKENS, eos_token_id=()
    )
    return reply.timings.decode * 1000 / (reply.usage.generated - 1)
