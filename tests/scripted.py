"""A tiny random decoder that says what a script tells it to: for tests of tool loops and adapters.

Everything but the choice of words is real: the model reads every token into memory, the logits are
its own with the scripted token's raised, so that sampling settings, logits processors, stop strings,
limits, streams, commits and continuous batching all do their work.

    engine = scripted_engine(["Hello!", "Bye."])
    engine.session("a").ask("Hi").text  # "Hello!"
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from tool_styles import styled_tokenizer
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from longmem import Engine, MemoryConfig
from longmem.feeding import Fed, Feed
from longmem.memory import SessionMemory
from longmem.packing import Outcome

Script = Sequence[str] | Callable[[str], str]
"""Replies in the order in which they are asked for; or a function from all the text a session has
read since it was opened (control tokens included) to the reply, for sessions that run at once."""

RAISED = 1e4
"""Added to the scripted token's logit: no temperature or penalty outweighs it."""
MEMORY = MemoryConfig(
    n_init=4, n_local=256, block_size=16, block_boundaries="turn", topk=4, lookup_span=64
)


def scripted_engine(
    replies: Script, memory: MemoryConfig = MEMORY, *, style: str = "nano", **options: Any
) -> Scripted:
    """An engine over a tiny random model whose replies are these texts.

    A reply that nothing was scripted for raises AssertionError; `Scripted.say` scripts more.

    Args:
        replies: see `Script`. Control tokens in them are sampled as such; the end token comes by itself.
        memory: settings of the memory.
        style: chat template and control tokens, of `tool_styles`.
        options: for `Engine`.
    """
    tokenizer = styled_tokenizer(style)
    engine = Scripted(tiny_model(len(tokenizer)), tokenizer, memory, **options)
    engine.script = replies
    return engine


def tiny_model(vocabulary: int) -> PreTrainedModel:
    """A random Qwen3 of two layers."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        initializer_range=0.4,
    )
    return Qwen3ForCausalLM(config).eval()


@dataclass
class _Spoken:
    """What one memory has read, and what is left of the reply it is saying."""

    start: int
    ids: list[int] = field(default_factory=list)
    left: list[int] | None = None

    def read(self, at: int, ids: Sequence[int]) -> None:
        """Take note of ids read at token position `at`, in place of those that were rewound."""
        del self.ids[max(at - self.start, 0) :]
        self.ids += ids


@dataclass(eq=False)
class Scripted(Engine):
    """See `scripted_engine`.

    Attributes:
        script: replies, or the function that makes them.
        said: replies begun so far.
    """

    def __post_init__(self, memory: MemoryConfig | None) -> None:
        super().__post_init__(memory)
        self.script: Script = ()
        self.said = 0
        self._spoken: WeakKeyDictionary[SessionMemory, _Spoken] = WeakKeyDictionary()

    def say(self, *replies: str) -> None:
        """Let these be the next replies, in place of what is left of the script."""
        self.script, self.said = replies, 0

    def run_pass(self, feeds: Sequence[Feed]) -> Sequence[Outcome]:
        """As `Engine.run_pass`, with the scripted token's logit raised in every decode step."""
        starts = [feed.memory.n_tokens for feed in feeds]
        outcomes = super().run_pass(feeds)
        return [
            self._prompted(feed, start, outcome)
            for feed, start, outcome in zip(feeds, starts, outcomes, strict=True)
        ]

    def _prompted(self, feed: Feed, start: int, outcome: Outcome) -> Outcome:
        spoken = self._spoken.setdefault(feed.memory, _Spoken(start))
        spoken.read(start, feed.ids)
        if not feed.trace:  # a turn or a closing is read: the reply before is over
            spoken.left = None
            return outcome
        if not isinstance(outcome, Fed):
            return outcome
        if spoken.left is None:
            try:
                spoken.left = self._next_reply(spoken)
            except AssertionError as error:
                return error
        token = spoken.left.pop(0) if len(spoken.left) > 1 else spoken.left[0]
        logits = outcome.logits.clone()
        logits[token] += RAISED
        best = token if outcome.best is not None else None
        return Fed(logits, outcome.reading, best)

    def _next_reply(self, spoken: _Spoken) -> list[int]:
        said, self.said = self.said, self.said + 1
        text = self.tokenizer.decode(spoken.ids, skip_special_tokens=False)
        if callable(self.script):
            reply = self.script(text)
        elif said < len(self.script):
            reply = self.script[said]
        else:
            raise AssertionError(f"the script has {said} replies, one more is asked for: {text!r}")
        ids = self.tokenizer(reply, add_special_tokens=False)["input_ids"]
        return [*ids, self._end]

    @property
    def _end(self) -> int:
        """The end token of the template's own turns."""
        ends = sorted(self.chat.eos_ids)
        return next((i for i in ends if self.chat.reads_eos(i)), ends[0])
