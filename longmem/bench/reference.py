"""What a model can do by itself: the task at a length it was trained on, with dense attention."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from longmem.bench.exam import Answer, examine
from longmem.bench.tasks import Prompt, Shrinking, Task
from longmem.bench.telling import turn_tokens
from longmem.bench.traced import TracedEngine
from longmem.bench.watch import Unwatched, Watch
from longmem.bench.wilson import Share
from longmem.config import MemoryConfig
from longmem.engine import Engine

QUESTIONS = 40
"""Questions a reference is taken from."""
_FIRST_SEED = 1_000_000  # prompts that no measurement uses
_MARGIN = 32  # template pieces around question and reply
_SPREAD = 96  # by which prompts of one length differ: an exchange


@dataclass(frozen=True)
class Reference:
    """The model without any memory, on prompts that fit its window whole.

    Args:
        tokens: mean length of the prompts.
        share: score; None where the task's prompts do not fit the trained positions.
        fewer: whether they held fewer keys or pairs than the task has, as many as fit.
    """

    task: str
    tokens: int
    share: Share | None
    fewer: bool = False

    @property
    def able(self) -> bool | None:
        """Whether the model answers half of the questions or more; None: it cannot be told."""
        return None if self.share is None else self.share.value >= 0.5


def reference(engine: Engine, task: Task, tokens: int, watch: Watch | None = None) -> Reference:
    """Ask at least `QUESTIONS` questions over prompts of about `tokens` tokens, with as many keys or
    pairs, and tokens, as the trained positions hold."""
    whole, (task, tokens) = task, _fitted(engine, task, tokens)
    watch = watch or Unwatched()
    dense = TracedEngine(engine.model, engine.tokenizer, _dense(engine), engine.segment_tokens)
    answers: list[Answer] = []
    lengths: list[int] = []
    for seed in count(_FIRST_SEED):
        prompt = task.make(seed, tokens, turn_tokens(engine))
        length = _length(engine, task, prompt)
        if length > engine.info.max_positions or not prompt.questions:
            return Reference(whole.name, length, None)
        watch.begin(f"{whole.name}: reference", length)
        got, cost = examine(dense, task, prompt, prompt.questions, watch)
        answers += got
        lengths.append(cost.tokens)
        if len(answers) >= QUESTIONS:
            break
    score = Share(sum(answer.score for answer in answers), len(answers))
    return Reference(whole.name, round(sum(lengths) / len(lengths)), score, task is not whole)


def _fitted(engine: Engine, task: Task, tokens: int) -> tuple[Task, int]:
    """The task with as much to tell, and the tokens, that fit the trained positions; both as they are
    where nothing fits."""
    most, found = engine.info.max_positions - _SPREAD, task
    while True:
        prompt = found.make(_FIRST_SEED, min(tokens, most), turn_tokens(engine))
        asking = _length(engine, found, prompt) - _told(engine, prompt)
        room = min(tokens, most - asking)
        prompt = found.make(_FIRST_SEED, room, turn_tokens(engine))
        if _length(engine, found, prompt) <= engine.info.max_positions - _MARGIN:
            return found, room
        smaller = found.fewer() if isinstance(found, Shrinking) else None
        if smaller is None:
            return task, tokens
        found = smaller


def _dense(engine: Engine) -> MemoryConfig:
    """A window of all trained positions, and nothing else."""
    config = engine.config
    return MemoryConfig(
        n_init=0,
        n_local=engine.info.max_positions,
        topk=0,
        max_turn_bytes=config.max_turn_bytes,
        keep_reasoning=config.keep_reasoning,
    )


def _length(engine: Engine, task: Task, prompt: Prompt) -> int:
    """Tokens of the prompt, its longest question and a reply."""
    size = turn_tokens(engine)
    asked = max((size(question.text) for question in prompt.questions), default=0)
    return _told(engine, prompt) + asked + task.reply_tokens + _MARGIN


def _told(engine: Engine, prompt: Prompt) -> int:
    """Tokens of the prompt."""
    size = turn_tokens(engine)
    return sum(size(text) for _, text in prompt.turns)
