"""The demo: facts told on one day, asked for on the next, in another process.

The second day knows nothing of the first but the store: the questions lie there beside the session.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, chain, islice
from typing import Any

from longmem.bench.telling import dialogue, spread, tell
from longmem.bench.wilson import Share
from longmem.engine import Engine
from longmem.nano.dialogue import Question
from longmem.session import Session
from longmem.store import Store
from longmem.types import Reply, SessionStats

_NAMESPACE = "demo"
_TURNS_PER_PAGE = 2048


@dataclass(frozen=True)
class DayOne:
    """What the first day was.

    Args:
        stats: of the session at its end.
        facts: how many were told.
        updated: how many of them got another value later.
    """

    stats: SessionStats
    facts: int
    updated: int


def tell_day(
    engine: Engine,
    store: Store,
    session_id: str,
    tokens: int,
    seed: int = 0,
    unseen: bool = False,
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> DayOne:
    """Day 1: the session reads a dialogue of about `tokens` tokens; its questions are stored too.

    Args:
        metadata: kept with the session.
        progress: called with the number of tokens read so far.
    """
    day = dialogue(engine, seed, tokens, unseen)
    with engine.session(session_id, store=store, metadata=metadata) as session:
        tell(session, day.turns, progress)
        stats = session.stats()
    sheet = [asdict(question) for question in day.questions]
    store.records.put(_NAMESPACE, session_id, sheet, session=session_id)
    return DayOne(stats, len(sheet), sum(q.updated for q in day.questions))


@dataclass(frozen=True)
class Answer:
    """A question, what was replied, and whether the reply holds the whole expected value."""

    question: Question
    reply: Reply

    @property
    def right(self) -> bool:
        """Whether the expected value is in the reply, ignoring case."""
        return self.question.answer.casefold() in self.reply.text.casefold()


@dataclass(frozen=True)
class Asked:
    """One question, answered with the memory and from the window alone.

    Args:
        memory, window: the two answers.
        tokens_ago: tokens between the turn that told the fact and the end of day 1.
        in_window: that turn is still within the local window, so nothing has to be recalled.
    """

    memory: Answer
    window: Answer
    tokens_ago: int
    in_window: bool

    @property
    def rank(self) -> int | None:
        """Place of the fact's turn among the recalled ones, from 1; None if it is not there."""
        turn = self.memory.question.fact_turn
        places = [place.turn.index for place in self.memory.reply.recalled]
        return places.index(turn) + 1 if turn in places else None


class DayTwo:
    """The session resumed, and the questions about the day before.

    Args:
        engine: the model, just loaded.
        open_store: opens the store; part of the time to the first token.
        session_id: the session of day 1.
        most: ask at most so many questions, spread evenly over the day; 0 asks all.
    """

    def __init__(
        self, engine: Engine, open_store: Callable[[], Store], session_id: str, most: int
    ) -> None:
        self._engine = engine
        before, started = engine.tokens_read, time.perf_counter()
        self._store = open_store()
        self.session = engine.session(session_id, store=self._store)
        self.open_seconds = time.perf_counter() - started
        self._fed = engine.tokens_read - before
        sheet = self._store.records.get(_NAMESPACE, session_id) or []
        self.questions = spread([Question(**entry) for entry in sheet], most)
        self.asked: list[Asked] = []

    def ask(self, max_new_tokens: int) -> Iterator[Asked]:
        """Ask all questions of the memory, and each of the window alone."""
        fed = self._engine.tokens_read
        answers = ask(self.session, self.questions, max_new_tokens)
        first = list(islice(answers, 1))  # before anything else is read
        self._fed += self._engine.tokens_read - fed
        ends = _turn_ends(self.session)
        window = window_only(self._engine)
        with window.session("window") as near:
            tell(near, _tail(self.session, ends, reach(window)))
            for answer in chain(first, answers):
                (beside,) = ask(near, [answer.question], max_new_tokens)
                ago = ends[-1] - ends[answer.question.fact_turn]
                asked = Asked(answer, beside, ago, ago < self._engine.config.n_local)
                self.asked.append(asked)
                yield asked

    @property
    def tokens_reread(self) -> int:
        """Tokens fed to the model from opening to the first reply, less those of that exchange."""
        if not self.asked:
            return self._fed
        usage = self.asked[0].memory.reply.usage
        closing = len(self._engine.chat.close_ids(None))  # feeds that usage does not count
        return max(0, self._fed - usage.read - usage.generated - closing)

    @property
    def first_token_seconds(self) -> float:
        """From the start of opening to the first token of the first reply."""
        first = self.asked[0].memory.reply.timings.first_token if self.asked else 0.0
        return self.open_seconds + first

    def figures(self) -> dict[str, object]:
        """The figures as a JSON-able object."""
        stats = self.session.stats()
        memory, window = self.shares(lambda asked: True)
        memory_updated, _ = self.shares(lambda asked: asked.memory.question.updated)
        return {
            "recall": memory.value,
            "recall_interval": memory.interval,
            "recall_window_only": window.value,
            "recall_updated": memory_updated.value,
            "questions": memory.total,
            "questions_updated": memory_updated.total,
            "tokens": stats.tokens,
            "tokens_reread": self.tokens_reread,
            "resume_ttft_s": round(self.first_token_seconds, 4),
            "bytes_device": stats.bytes_device,
            "bytes_host": stats.bytes_host,
            "bytes_disk": stats.bytes_disk,
        }

    def shares(self, chosen: Callable[[Asked], bool]) -> tuple[Share, Share]:
        """Right answers to the chosen questions: with the memory, and from the window alone."""
        asked = [each for each in self.asked if chosen(each)]
        return share(each.memory for each in asked), share(each.window for each in asked)

    def close(self) -> None:
        """Close session and store."""
        self.session.close()
        self._store.close()


def ask(session: Session, questions: Iterable[Question], max_new_tokens: int) -> Iterator[Answer]:
    """Ask each question from the same point of the conversation; nothing is stored."""
    for question in questions:
        reply = session.ask(question.text, commit=False, max_new_tokens=max_new_tokens)
        yield Answer(question, reply)


def share(answers: Iterable[Answer]) -> Share:
    """Right answers out of all."""
    right = [answer.right for answer in answers]
    return Share(sum(right), len(right))


def window_only(engine: Engine) -> Engine:
    """The same model with its local window and initial tokens, and no block to look up."""
    return Engine(engine.model, engine.tokenizer, engine.config.replace(topk=0))


def reach(engine: Engine) -> int:
    """How many tokens back the window of the last token can reach through all layers."""
    config = engine.config
    return (len(engine.info.layers) + 1) * (config.n_local + config.block_size)


def _turn_ends(session: Session) -> list[int]:
    """The token position behind each turn, read page by page: a long day has many turns."""
    count = session.stats().turns
    pages = (session.turns(at, at + _TURNS_PER_PAGE) for at in range(0, count, _TURNS_PER_PAGE))
    return list(accumulate(turn.tokens for page in pages for turn in page))


def _tail(session: Session, ends: Sequence[int], tokens: int) -> list[tuple[str, str]]:
    """The last turns: as many as hold `tokens` tokens."""
    first = bisect_right(ends, ends[-1] - tokens)
    return [(turn.role, turn.text) for turn in session.turns(first)]
