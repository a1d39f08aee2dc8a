"""Recall over tasks, lengths and memories: every memory is told the same prompts and asked the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longmem.bench.exam import Answer, Cost, examine
from longmem.bench.methods import Method
from longmem.bench.reference import Reference, reference
from longmem.bench.room import check_room
from longmem.bench.tasks import Task
from longmem.bench.telling import spread, turn_tokens
from longmem.bench.traced import TracedEngine
from longmem.bench.watch import Unwatched, Watch
from longmem.bench.wilson import Share
from longmem.engine import Engine


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Args:
        tasks: the tasks.
        lengths: tokens per prompt.
        seeds: one prompt for each.
        methods: the memories under comparison.
        questions: most questions per prompt, spread evenly over it; 0 asks all.
        training_tokens: length of the prompts of the reference; 0 takes none.
        anyway: measure also tasks that the model cannot do by itself.
        folder: where sessions live on disk; None keeps them in memory.
    """

    tasks: Sequence[Task]
    lengths: Sequence[int]
    seeds: Sequence[int]
    methods: Sequence[Method]
    questions: int = 0
    training_tokens: int = 0
    anyway: bool = False
    folder: Path | None = None


@dataclass(frozen=True)
class Cell:
    """One memory on one task at one length: the answers in order of seeds, and what they cost."""

    task: str
    tokens: int
    method: str
    answers: list[Answer] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)

    @property
    def score(self) -> Share:
        """The task's score."""
        return Share(sum(answer.score for answer in self.answers), len(self.answers))

    @property
    def found(self) -> Share | None:
        """Block recall: share of the evidence in closed blocks that a look-up chose; None where
        nothing is chosen."""
        found = [answer.found for answer in self.answers if answer.found is not None]
        return Share(sum(found), len(found)) if found else None


@dataclass(frozen=True)
class RecallRun:
    """All that was measured."""

    cells: list[Cell]
    references: dict[str, Reference]

    def able(self, task: str) -> bool:
        """Whether the model can do a task by itself, as far as that was measured."""
        found = self.references.get(task)
        return found is None or found.able is not False


def measure(engine: Engine, plan: Plan, watch: Watch | None = None) -> RecallRun:
    """Run a plan.

    Args:
        engine: the model, under its own settings.

    Raises:
        ConfigError: a memory does not fit the model, or a history the machine.
    """
    watch = watch or Unwatched()
    engines = {
        m.name: TracedEngine(engine.model, engine.tokenizer, m.config, engine.segment_tokens)
        for m in plan.methods
    }
    for name, each in engines.items():
        _check(each, name, max(plan.lengths), plan)
    run = RecallRun([], {})
    for task in plan.tasks:
        if plan.training_tokens:
            run.references[task.name] = reference(engine, task, plan.training_tokens, watch)
        if run.able(task.name) or plan.anyway:
            for tokens in plan.lengths:
                run.cells.extend(_cells(engines, plan, task, tokens, watch))
    return run


def _check(engine: Engine, name: str, tokens: int, plan: Plan) -> None:
    store = "" if plan.folder is not None else ", or let blocks lie on disk with --store FOLDER"
    advice = f"take fewer --tokens or leave this preset out{store}"
    check_room(engine, f"preset {name}", tokens, plan.folder, advice)


def _cells(
    engines: dict[str, TracedEngine], plan: Plan, task: Task, tokens: int, watch: Watch
) -> Iterator[Cell]:
    cells = {name: Cell(task.name, tokens, name) for name in engines}
    for seed in plan.seeds:
        size = turn_tokens(next(iter(engines.values())))
        prompt = task.make(seed, tokens, size)
        length = sum(size(text) for _, text in prompt.turns)
        questions = spread(prompt.questions, plan.questions)
        for name, engine in engines.items():
            if length > tokens:
                _check(engine, name, length, plan)
            watch.begin(f"{task.name} {tokens:,} seed {seed}, {name}", length)
            answers, cost = examine(engine, task, prompt, questions, watch, plan.folder)
            cells[name].answers.extend(answers)
            cells[name].costs.append(cost)
    yield from cells.values()
