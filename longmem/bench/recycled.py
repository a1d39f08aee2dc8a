"""What reusing a working set costs in answers and saves in time: a recycling policy against looking
blocks up at every token.

Both memories are told the same prompts and asked the same questions. Beside the free replies, whose
recall is compared, each of the reference's replies is fed to both, token by token, through the same
decode loop with its policy at work (teacher forcing): at how many steps is the likeliest next token
the same? The first step, at which both look up, does not count. Times are taken from these replies, for
both memories decode the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from longmem.bench.paired import Pairs, pairs
from longmem.bench.room import check_room
from longmem.bench.tasks import Question, Task
from longmem.bench.telling import tell, turn_tokens
from longmem.bench.traced import TracedEngine
from longmem.bench.watch import Unwatched, Watch
from longmem.bench.wilson import Share
from longmem.config import MemoryConfig
from longmem.engine import Engine
from longmem.session import Session
from longmem.types import Reply


@dataclass(frozen=True)
class Side:
    """One memory's replies to one question.

    Args:
        score: of its free reply, by the task.
        steps: tokens it was fed under teacher forcing.
        refreshes: how many of these steps looked blocks up, in one layer or more.
        lookups: look-ups of layers at these steps.
        lookups_saved: further ones that looking up in all layers at every step would have taken.
        seconds: decoding them took, the first left out.
    """

    score: float
    steps: int
    refreshes: int
    lookups: int
    lookups_saved: int
    seconds: float


@dataclass(frozen=True)
class Trial:
    """One question under both memories; `agree` counts steps after the first with the same likeliest
    token."""

    reference: Side
    policy: Side
    agree: int


@dataclass(frozen=True)
class RecycledRun:
    """All trials."""

    trials: list[Trial]

    @property
    def agreement(self) -> Share:
        """Top-1 agreement, over all steps of the teacher's replies but their first."""
        steps = sum(max(0, trial.policy.steps - 1) for trial in self.trials)
        return Share(sum(trial.agree for trial in self.trials), steps)

    @property
    def pairs(self) -> Pairs:
        """Whole answers right: first the reference, second the policy."""
        right = [(t.reference.score >= 1, t.policy.score >= 1) for t in self.trials]
        return pairs([a for a, _ in right], [b for _, b in right])

    def recall(self, sides: Sequence[Side]) -> Share:
        """Score of free replies."""
        return Share(sum(side.score for side in sides), len(sides))

    def figures(self) -> dict[str, object]:
        """The figures as a JSON-able object."""
        agreement, counts = self.agreement, self.pairs
        sides = {
            "reference": [trial.reference for trial in self.trials],
            "policy": [trial.policy for trial in self.trials],
        }
        times = {name: _ms_per_token(side) for name, side in sides.items()}
        lookups = {name: sum(s.lookups for s in side) for name, side in sides.items()}
        return {
            "replies": len(self.trials),
            "top1_agreement": agreement.value,
            "top1_agreement_interval": agreement.interval,
            "steps": agreement.total,
            **{f"recall_{name}": self.recall(side).value for name, side in sides.items()},
            **{f"recall_{name}_interval": self.recall(s).interval for name, s in sides.items()},
            "both_right": counts.both,
            "only_reference_right": counts.only_first,
            "only_policy_right": counts.only_second,
            "neither_right": counts.neither,
            "p": counts.p,
            **{f"refreshes_{name}": sum(s.refreshes for s in side) for name, side in sides.items()},
            **{f"lookups_{name}": amount for name, amount in lookups.items()},
            "lookups_saved_policy": sum(side.lookups_saved for side in sides["policy"]),
            "lookup_ratio": lookups["reference"] / lookups["policy"] if lookups["policy"] else None,
            **{f"ms_per_token_{name}": ms for name, ms in times.items()},
            "time_ratio": times["policy"] / times["reference"] if times["reference"] else None,
        }


def every_step(policy: MemoryConfig) -> MemoryConfig:
    """The same memory, looking blocks up at every token."""
    return policy.replace(recycling="fixed", stride=1, topk_tokens=None)


def measure(
    engine: Engine,
    policy: MemoryConfig,
    task: Task,
    tokens: int,
    replies: int = 100,
    first_seed: int = 0,
    reply_tokens: int = 0,
    watch: Watch | None = None,
) -> RecycledRun:
    """Compare a policy with `every_step`.

    Args:
        policy: the memory settings under test.
        tokens: length of each prompt; as many prompts as `replies` questions take.
        reply_tokens: let every reply go on to so many tokens, past its end; 0: as the task has it.

    Raises:
        ConfigError: a memory does not fit the model, or a history the machine.
    """
    watch, trials = watch or Unwatched(), []
    engines = {
        name: TracedEngine(engine.model, engine.tokenizer, config, engine.segment_tokens)
        for name, config in (("every step", every_step(policy)), ("policy", policy))
    }
    for each in engines.values():
        check_room(each, "one of the two memories", tokens)
    for seed in count(first_seed):
        prompt = task.make(seed, tokens, turn_tokens(engine))
        seats = []
        for name, each in engines.items():
            seats.append(_Seat(each, each.session(name)))
            watch.begin(f"{task.name} {tokens:,} seed {seed}, {name}", tokens)
            tell(seats[-1].session, prompt.turns, watch.read)
        for question in prompt.questions:
            trials.append(_trial(seats[0], seats[1], task, question, reply_tokens))
            watch.asked(len(trials), replies)
            if len(trials) == replies:
                return RecycledRun(trials)
    raise AssertionError("seeds never end")


@dataclass(frozen=True)
class _Seat:
    """One memory, and the session it holds."""

    engine: TracedEngine
    session: Session

    def ask(self, question: Question, **options: object) -> Reply:
        """Reply, with a trace of its own."""
        self.engine.forget()
        return self.session.ask(question.text, commit=False, **options)  # type: ignore[arg-type]


def _trial(
    reference: _Seat, policy: _Seat, task: Task, question: Question, reply_tokens: int
) -> Trial:
    ends: dict[str, object] = {"eos_token_id": ()} if reply_tokens else {}
    most = reply_tokens or task.reply_tokens
    free = [seat.ask(question, max_new_tokens=most, **ends) for seat in (policy, reference)]
    trace = reference.engine
    teacher = [*trace.fed[1:], trace.best[-1]]  # the trace starts with the header's last token
    sides, best = [], []
    for seat, said in zip((reference, policy), reversed(free), strict=True):
        forced = seat.ask(
            question,
            max_new_tokens=len(teacher),
            logits_processor=LogitsProcessorList([_Forced(teacher)]),
            **ends,
        )
        score = task.score(question, said.text)
        usage, seconds = forced.usage, forced.timings.decode
        sides.append(
            Side(
                score,
                usage.generated,
                usage.refreshes,
                usage.lookups,
                usage.lookups_saved,
                seconds,
            )
        )
        best.append(seat.engine.best)
    agree = sum(a == b for a, b in list(zip(*best, strict=True))[1:])
    return Trial(sides[0], sides[1], agree)


def _ms_per_token(sides: Sequence[Side]) -> float:
    steps = sum(side.steps - 1 for side in sides)
    return 1000 * sum(side.seconds for side in sides) / steps if steps else 0.0


class _Forced(LogitsProcessor):  # type: ignore[misc]  # transformers has no types of its own
    """Leaves one token possible at each step: the teacher's."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = iter(ids)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        only = torch.full_like(scores, -torch.inf)
        only[:, next(self._ids)] = 0.0
        return only
