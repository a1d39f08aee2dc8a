"""The pass-key test (Mohtashami & Jaggi, arXiv 2305.16300) as a conversation: one number, told once
at some depth of a long chat about other things, asked for at its end."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longmem.bench.recall import MAX_REPLY_TOKENS, Turns, tell, turn_tokens
from longmem.engine import Engine
from longmem.nano.pool import Pool

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class PassKey:
    """One run: where the key was told, how long the history was, and what was replied."""

    depth: float
    tokens: int
    key: str
    reply: str

    @property
    def found(self) -> bool:
        """Whether the reply holds the key."""
        return self.key in self.reply


def measure(
    engine: Engine,
    tokens: int = 100_000,
    depths: Sequence[float] = DEPTHS,
    seed: int = 0,
    report: Callable[[PassKey], None] = lambda run: None,
) -> list[PassKey]:
    """Tell and ask one key per depth, each in a conversation of its own."""
    runs = []
    for i, depth in enumerate(depths):
        run = _run(engine, tokens, depth, seed + i)
        report(run)
        runs.append(run)
    return runs


def haystack(engine: Engine, tokens: int, depth: float, seed: int) -> tuple[Turns, str]:
    """Chatter of about `tokens` tokens with one pass key at `depth`, and that key."""
    rng = random.Random(seed)
    pool, count = Pool(rng), turn_tokens(engine)
    key = f"{rng.randint(10_000, 99_999)}"
    turns: list[tuple[str, str]] = []
    length, told = 0, False
    while length < tokens or not told:
        if not told and length >= depth * (tokens - 100):
            pair = (f"The pass key is {key}. Remember it.", pool.ack())
            told = True
        else:
            pair = pool.chatter([])
        turns += [("user", pair[0]), ("assistant", pair[1])]
        length += count(pair[0]) + count(pair[1])
    return turns, key


def _run(engine: Engine, tokens: int, depth: float, seed: int) -> PassKey:
    turns, key = haystack(engine, tokens, depth, seed)
    with engine.session("pass key") as session:
        tell(session, turns)
        reply = session.ask("What is the pass key?", commit=False, max_new_tokens=MAX_REPLY_TOKENS)
        return PassKey(depth, session.stats().tokens, key, reply.text)
