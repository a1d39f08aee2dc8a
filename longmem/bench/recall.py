"""Recall of facts told long ago, through the memory and through the local window alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from longmem.bench.wilson import Share
from longmem.engine import Engine
from longmem.nano.dialogue import Dialogue, Question, make_dialogue
from longmem.session import Session
from longmem.types import Reply

MAX_REPLY_TOKENS = 32
TURNS_PER_COMMIT = 512

Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Answer:
    """A question, what was replied, and whether the reply holds the whole expected value."""

    question: Question
    reply: Reply

    @property
    def right(self) -> bool:
        """Whether the expected value is in the reply, ignoring case."""
        return self.question.answer.casefold() in self.reply.text.casefold()


def turn_tokens(engine: Engine) -> Callable[[str], int]:
    """A function that counts the tokens a text takes as a turn, template pieces included."""
    frame = len(engine.chat.turn_ids("user", "x", previous="assistant")) - 1
    return lambda text: frame + len(engine.tokenizer(text, add_special_tokens=False)["input_ids"])


def dialogue(engine: Engine, seed: int, tokens: int, unseen: bool = False) -> Dialogue:
    """A day of chat of about `tokens` tokens with 2 facts per 1,000."""
    return make_dialogue(seed, tokens, turn_tokens(engine), unseen=unseen)


def tell(session: Session, turns: Turns, progress: Callable[[int], None] | None = None) -> None:
    """Let the session read the turns, a few hundred to a commit.

    Args:
        progress: called with the number of tokens read so far.
    """
    done = 0
    for at in range(0, len(turns), TURNS_PER_COMMIT):
        batch = turns[at : at + TURNS_PER_COMMIT]
        told = session.add(batch, progress=_from(done, progress) if progress else None)
        done += sum(turn.tokens for turn in told)


def _from(start: int, progress: Callable[[int], None]) -> Callable[[int, int], None]:
    """The progress of one commit as progress of all of them."""
    return lambda done, total: progress(start + done)


def ask(
    session: Session, questions: Iterable[Question], max_new_tokens: int = MAX_REPLY_TOKENS
) -> Iterator[Answer]:
    """Ask each question from the same point of the conversation; nothing is stored."""
    for question in questions:
        reply = session.ask(question.text, commit=False, max_new_tokens=max_new_tokens)
        yield Answer(question, reply)


def window_only(engine: Engine) -> Engine:
    """The same model with its local window and initial tokens, and no block to look up."""
    return Engine(engine.model, engine.tokenizer, engine.config.replace(topk=0))


def reach(engine: Engine) -> int:
    """How many tokens back the window of the last token can reach through all layers."""
    config = engine.config
    return (len(engine.info.layers) + 1) * (config.n_local + config.block_size)


def tail(engine: Engine, turns: Turns) -> Turns:
    """The last turns: as many as hold `reach` tokens."""
    count, length, at = turn_tokens(engine), 0, len(turns)
    while at > 0 and length < reach(engine):
        at -= 1
        length += count(turns[at][1])
    return turns[at:]


@dataclass(frozen=True)
class RecallRun:
    """All answers of one measured setting."""

    tokens: int
    unseen: bool
    answers: list[Answer]
    window_answers: list[Answer]
    seconds: float

    def figures(self) -> dict[str, object]:
        """The figures as a JSON-able object."""
        updated = [a for a in self.answers if a.question.updated]
        kinds = sorted({a.question.kind for a in self.answers})
        by_kind = {k: str(share(a for a in self.answers if a.question.kind == k)) for k in kinds}
        recall, window = share(self.answers), share(self.window_answers)
        return {
            "tokens": self.tokens,
            "unseen": self.unseen,
            "questions": recall.total,
            "recall": recall.value,
            "recall_interval": recall.interval,
            "recall_updated": share(updated).value,
            "questions_updated": len(updated),
            "recall_window_only": window.value,
            "by_kind": by_kind,
            "seconds": round(self.seconds, 1),
        }


def share(answers: Iterable[Answer]) -> Share:
    """Right answers out of all."""
    right = [answer.right for answer in answers]
    return Share(sum(right), len(right))


def measure(
    engine: Engine,
    tokens: int,
    seeds: Sequence[int],
    unseen: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> RecallRun:
    """Tell and ask one dialogue per seed; the same questions go to the window alone."""
    started = time.perf_counter()
    answers: list[Answer] = []
    window_answers: list[Answer] = []
    window = window_only(engine)
    for seed in seeds:
        day = dialogue(engine, seed, tokens, unseen)
        with engine.session("recall") as session:
            tell(session, day.turns)
            answers += ask(session, day.questions)
        with window.session("window") as session:
            tell(session, tail(window, day.turns))
            window_answers += ask(session, day.questions)
        report(f"seed {seed}: recall {share(answers)}, window only {share(window_answers)}")
    return RecallRun(tokens, unseen, answers, window_answers, time.perf_counter() - started)
