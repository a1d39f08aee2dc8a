"""The steps of one reply: read the turn, then sample, feed, and give out text."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longmem.feeding import Fed, Feed, Request, Segment, Together
from longmem.ledger import Draft
from longmem.memory import Choice, ReadSpan, SessionMemory
from longmem.memory.uploading import upload
from longmem.recycling import ReplyLookups, costs_of, get_policy
from longmem.sampling import Sampler, Sampling
from longmem.strand import Steps
from longmem.text_stream import TextStream
from longmem.types import FinishReason, Turn, Usage

if TYPE_CHECKING:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    from longmem.engine import Engine


@dataclass(frozen=True)
class Extensions:
    """A user's own steering of one reply, as transformers' lists.

    Args:
        logits_processor: applied behind the repetition penalty, before temperature and filters.
        stopping_criteria: asked after every token.
    """

    logits_processor: LogitsProcessorList | None = None
    stopping_criteria: StoppingCriteriaList | None = None


class Decoding:
    """One reply to one or several new turns, in the memory of one session.

    The reply's turn starts with the template's header. The header's last token is the first decode
    step, so that the look-up of the first sampled token is that token's own query.

    Args:
        engine: the model.
        memory: the session's memory.
        turns: the turns to read; the reply is to the last one.
        segments: their ids and spans.
        sampling: how to decode.
        extensions: the user's own processors and criteria.
        generator: source of randomness.
        recent: ids in the local window, for logits processors.
        stopping: asked between tokens whether to end the reply here.
    """

    def __init__(
        self,
        engine: Engine,
        memory: SessionMemory,
        turns: Sequence[Turn],
        segments: Sequence[Segment],
        sampling: Sampling,
        extensions: Extensions,
        generator: torch.Generator,
        recent: Sequence[int],
        stopping: Callable[[], bool],
    ) -> None:
        self._stopping = stopping
        self._engine, self._memory = engine, memory
        self._turns, self._segments = turns, segments
        self._role = turns[-1].role
        self._new_ids = [i for segment in segments for i in segment.ids]
        self._sampling, self._generator = sampling, generator
        self._sampler = Sampler(
            sampling,
            engine.model.generation_config,
            eos_ids=engine.chat.eos_ids,
            logits_processor=extensions.logits_processor,
            stopping_criteria=extensions.stopping_criteria,
        )
        self._context = _Context([*recent, *self._new_ids], sampling.max_new_tokens, engine.device)
        self._from_memory = memory.n_tokens
        self._header = engine.chat.reply_header_ids(self._role)
        self._ids = list(self._header)
        self._spans: list[ReadSpan] = []
        self._sampled: list[int] = []
        self._lookups = ReplyLookups(
            get_policy(engine.config.recycling)(engine.config, lambda: costs_of(engine, memory)),
            self._spans,
        )
        self._last: Fed | None = None
        self.choices: list[Choice] = []
        self.finish: FinishReason = "length"
        self.first_token_at = 0.0
        chat = engine.chat
        self.text = TextStream(
            engine.tokenizer,
            stop_strings=(*sampling.stop, *chat.stop_strings),
            skip_ids=chat.eos_ids,
            tags=chat.tags,
            opened=chat.opens_reasoning,
            lead=chat.reply_lead,
            markers=chat.tool_markers,
        )

    def steps(self, bring: Callable[[str], None]) -> Steps:
        """Decode, as a strand of the engine's scheduler, which brings pieces of text."""
        yield from self._read_turn()
        while True:
            token = self._sample()
            if token in self._sampler.eos_ids:
                self.finish = "eos"
                break
            if piece := self.text.push(token):
                bring(piece)
            if reason := self._ended():
                self.finish = reason
                break
            if not (yield from self._step(token)):
                self.finish = "stopped"
                break
        if piece := self.text.finish():
            bring(piece)
        yield from self._close_turn()

    def drafts(self) -> list[Draft]:
        """The exchange's turns, as memory holds them; the reply's is the last."""
        read = [
            Draft(turn.role, turn.text, segment.ids, segment.spans, turn.extra)
            for turn, segment in zip(self._turns, self._segments, strict=True)
        ]
        extra: dict[str, str] = {"finish_reason": self.finish}
        if self.text.reasoning:
            extra["reasoning"] = self.text.reasoning
        if not self._engine.chat.rewrites_reply(self.text.reasoning):
            return [*read, Draft("assistant", self.text.text, self._ids, self._spans, extra)]
        self._memory.rewind(self._after_turn)
        ids = self._engine.chat.turn_ids("assistant", self.text.text, previous=self._role)
        spans = self._engine.spans(len(ids))
        self._engine.read(self._memory, [Segment(ids, spans)])
        return [*read, Draft("assistant", self.text.text, ids, spans, extra)]

    def usage(self) -> Usage:
        """Counts of tokens and look-ups."""
        return Usage(
            read=len(self._new_ids) + len(self._header),
            generated=len(self._sampled),
            from_memory=self._from_memory,
            refreshes=self._lookups.refreshes,
            recycled=self._lookups.recycled,
            lookups=self._lookups.lookups,
            lookups_saved=self._lookups.saved,
        )

    def _read_turn(self) -> Steps:
        """Read the turns and the reply's header, up to the logits of the first sampled token."""
        engine, lead = self._engine, self._header[:-1]
        yield from engine.reading(self._memory, self._segments, _nobody)
        if not engine.chat.keep_reasoning:
            self._after_turn = self._memory.mark()
        if lead:
            self._spans += engine.spans(len(lead))
            yield from engine.reading(self._memory, [Segment(lead, self._spans)], _nobody)
        yield from self._step(self._header[-1], starts_turn=not lead)

    def _sample(self) -> int:
        assert self._last is not None
        token = self._last.best
        if token is None:
            logits = self._last.logits[None]
            token = self._sampler.next(self._context.ids, logits, self._generator)
        self.first_token_at = self.first_token_at or time.perf_counter()
        self._context.append(token)
        self._sampled.append(token)
        self._ids.append(token)
        return token

    def _ended(self) -> FinishReason | None:
        if self.text.stopped:
            return "stop"
        if self._stopping():
            return "stopped"
        if len(self._sampled) >= self._sampling.max_new_tokens:
            return "length"
        return "stop" if self._criteria_met() else None

    def _criteria_met(self) -> bool:
        assert self._last is not None
        criteria = self._sampler.criteria
        return bool(criteria) and self._sampler.done(self._context.ids, self._last.logits[None])

    def _step(
        self, token: int, starts_turn: bool = False
    ) -> Generator[Request, Sequence[Fed], bool]:
        """Feed one token; the policy says whether blocks are looked up again. False if the reply was
        stopped before."""
        span, starts = self._lookups.plan(), [0] if starts_turn else []
        feed = Feed(
            self._memory,
            [token],
            [span],
            starts,
            trace=True,
            decide=self._lookups.decide,
            best=self._sampler.takes_best,
            asks=self._lookups.asks,
        )
        while not (fed := (yield Together([feed]))):
            if self._sampled and self._stopping():
                return False
        (self._last,) = fed
        self.choices += self._last.reading.choices
        self._lookups.done(span, self._last.reading)
        return True

    def _close_turn(self) -> Steps:
        """Feed the last sampled token and the template's closing, on the last look-up."""
        chat, last = self._engine.chat, self._sampled[-1]
        closing = chat.close_ids(last)
        if last in self._sampler.eos_ids and not chat.reads_eos(last):
            self._ids.pop()  # an end token no conversation of the template holds
            tail = closing
        else:
            tail = [last, *closing]
        self._ids += closing
        if tail:
            request = Together([Feed(self._memory, tail, [ReadSpan(len(tail), 0)])])
            while not (yield request):
                pass  # told to think again: nothing was read yet
            self._lookups.extend(len(tail))


def _nobody(tokens: int) -> None:
    """Takes the progress nobody asked for."""


class _Context:
    """Window and reply ids ``[1, n]`` in one preallocated buffer, filled when somebody looks."""

    def __init__(self, ids: Sequence[int], room: int, device: torch.device) -> None:
        self._ids = list(ids)
        self._room, self._device = len(ids) + room, device
        self._buffer = torch.zeros(1, 0, dtype=torch.long)
        self._filled = 0

    @property
    def ids(self) -> Tensor:
        if not self._buffer.numel():
            self._buffer = torch.zeros(1, self._room, dtype=torch.long, device=self._device)
        n, new = len(self._ids), self._buffer[0, self._filled : len(self._ids)]
        if len(new) == 1:  # as a number, which needs no transfer
            new.fill_(self._ids[-1])
        elif len(new):
            new.copy_(upload(torch.tensor(self._ids[self._filled :]), self._device))
        self._filled = n
        return self._buffer[:, :n]

    def append(self, token: int) -> None:
        self._ids.append(token)
