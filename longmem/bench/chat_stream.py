"""A conversation without end: exchanges of about 40 tokens, told one commit each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

from longmem.bench.telling import dialogue
from longmem.engine import Engine
from longmem.session import Session

Exchange = list[tuple[str, str]]
"""A user's turn and the reply to it, as ``(role, text)``."""
Report = Callable[[str], None]
"""Called with a line about how far a run is."""

_DAY = 20_000


def silent(line: str) -> None:
    """A `Report` for nobody."""


def exchanges(engine: Engine, first_day: int = 0) -> Iterator[Exchange]:
    """The turns of the conversation task, one day of 20,000 tokens after another, two at a time.

    Args:
        engine: whose tokenizer the days are measured with.
        first_day: seed of the first.
    """
    for day in count(first_day):
        turns = dialogue(engine, day, _DAY).turns
        yield from (list(turns[at : at + 2]) for at in range(0, len(turns), 2))


class Talk:
    """Lets sessions read on in one conversation.

    Args:
        engine: whose tokenizer it is measured with.
        first_day: seed of its first day.
    """

    def __init__(self, engine: Engine, first_day: int = 0) -> None:
        self._exchanges = exchanges(engine, first_day)

    def next(self) -> Exchange:
        """The next exchange."""
        return next(self._exchanges)

    def part(self, session: Session, tokens: int) -> Exchange:
        """Turns of at least `tokens` tokens, to be read at once."""
        tokenizer, turns, found = session.engine.tokenizer, list[tuple[str, str]](), 0
        while found < tokens:
            turns += self.next()
            texts = [text for _, text in turns[-2:]]
            ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
            found += sum(len(each) for each in ids)
        return turns

    def read_to(self, session: Session, tokens: int, after: Callable[[int], None]) -> None:
        """Read exchange by exchange, each its own commit, until the session holds `tokens` tokens.

        Args:
            after: called with the number of tokens behind each commit.
        """
        held = session.stats().tokens
        while held < tokens:
            held += sum(turn.tokens for turn in session.add(self.next()))
            after(held)
