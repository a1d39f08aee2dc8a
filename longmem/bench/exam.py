"""One prompt told to one memory, and its questions asked from the same state."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from longmem.bench.evidence import chooses, found_share
from longmem.bench.tasks import Prompt, Question, Task
from longmem.bench.telling import tell
from longmem.bench.traced import TracedEngine
from longmem.bench.watch import Unwatched, Watch

if TYPE_CHECKING:
    from longmem.session import Session
    from longmem.store import Store
    from longmem.types import Reply


@dataclass(frozen=True)
class Answer:
    """A question, the reply, and what it was worth.

    Args:
        score: the task's own, 0 .. 1.
        found: share of the evidence whose blocks were looked up; None where nothing was chosen.
    """

    question: Question
    reply: str
    score: float
    found: float | None

    @property
    def right(self) -> bool:
        """Whether all that was asked for is in the reply."""
        return self.score >= 1.0


@dataclass(frozen=True)
class Cost:
    """What one prompt and its questions took: seconds, steps and bytes.

    Args:
        tokens: read as history.
        read_seconds: reading it.
        decode_seconds, decode_steps: all replies, their first tokens left out.
        refreshes, recycled: decode steps that looked blocks up, or did not.
        bytes_device, bytes_host, bytes_disk: as `longmem.SessionStats`, after reading.
    """

    tokens: int
    read_seconds: float
    decode_seconds: float
    decode_steps: int
    refreshes: int
    recycled: int
    bytes_device: int
    bytes_host: int
    bytes_disk: int


def examine(
    engine: TracedEngine,
    task: Task,
    prompt: Prompt,
    questions: Sequence[Question],
    watch: Watch | None = None,
    folder: Path | None = None,
) -> tuple[list[Answer], Cost]:
    """Tell the prompt, ask the questions; nothing of the asking is kept.

    Args:
        folder: where the session lives on disk while it lasts; None keeps it in memory.
    """
    watch = watch or Unwatched()
    with _lodging(folder) as store, engine.session("bench", store=store) as session:
        started = time.perf_counter()
        ends = tell(session, prompt.turns, watch.read)
        read_seconds = time.perf_counter() - started
        stats = session.stats()
        answers, replies = [], []
        for question in questions:
            answer, reply = _ask(engine, session, task, question, ends)
            answers.append(answer)
            replies.append(reply)
            watch.asked(len(answers), len(questions))
    return answers, Cost(
        tokens=stats.tokens,
        read_seconds=read_seconds,
        decode_seconds=sum(reply.timings.decode for reply in replies),
        decode_steps=sum(reply.usage.generated - 1 for reply in replies),
        refreshes=sum(reply.usage.refreshes for reply in replies),
        recycled=sum(reply.usage.recycled for reply in replies),
        bytes_device=stats.bytes_device,
        bytes_host=stats.bytes_host,
        bytes_disk=stats.bytes_disk,
    )


def _ask(
    engine: TracedEngine, session: Session, task: Task, question: Question, ends: Sequence[int]
) -> tuple[Answer, Reply]:
    engine.forget()
    reply = session.ask(question.text, commit=False, max_new_tokens=task.reply_tokens)
    memory, found = session._conversation.memory, None
    if chooses(engine.config) and memory is not None:
        found = found_share(engine.choices, question.evidence, ends, memory)
    return Answer(question, reply.text, task.score(question, reply.text), found), reply


@contextmanager
def _lodging(folder: Path | None) -> Iterator[Store | None]:
    """A store for one session, gone afterwards."""
    if folder is None:
        yield None
        return
    from longmem.stores import SQLiteStore

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix="bench-") as own, SQLiteStore(own) as store:
        yield store
