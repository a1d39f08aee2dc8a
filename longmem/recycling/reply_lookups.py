"""The look-ups of one reply: asked for, counted, and recorded."""

from __future__ import annotations

from torch import Tensor

from longmem.memory import Reading, ReadSpan
from longmem.recycling.policy import RefreshPolicy


class ReplyLookups:
    """Asks a policy before each decode step and keeps the record a replay needs.

    A step that is due is recorded as it was fed, as a span of its own with the layers that looked
    up; all others extend the span before them.

    Args:
        policy: the reply's own.
        spans: those of the reply's tokens so far; new ones are appended.
    """

    def __init__(self, policy: RefreshPolicy, spans: list[ReadSpan]) -> None:
        self._policy, self._spans = policy, spans
        self._asked: set[int] = set()
        self._layers = 0
        self.refreshes = 0
        """Steps at which a layer looked up."""
        self.steps = 0
        """Decode steps so far."""
        self.lookups = 0
        """Look-ups of layers."""

    @property
    def asks(self) -> bool:
        """Whether `decide` may say no at a step that is due."""
        return getattr(self._policy, "asks", True)

    @property
    def recycled(self) -> int:
        """Steps at which no layer looked up."""
        return self.steps - self.refreshes

    @property
    def saved(self) -> int:
        """Look-ups that refreshing all layers at every step would have added."""
        return self._layers * self.steps - self.lookups

    def plan(self) -> ReadSpan:
        """The span in which the next step is to be read."""
        self._asked = set()
        return ReadSpan(1, int(self._policy.due()))

    def decide(self, layer: int, q: Tensor) -> bool:
        """Whether `layer` looks up at this step; see `longmem.memory.Reading.decide`."""
        self._asked.add(layer)
        return self._policy.decide(layer, q)

    def done(self, span: ReadSpan, reading: Reading) -> None:
        """A planned step was read."""
        self.steps += 1
        if not span.voters:
            self.extend(1)
            return
        refreshed = tuple(reading.refreshed.get(0, ()))
        everywhere = set(refreshed) == self._asked
        self._spans.append(ReadSpan(1, span.voters, None if everywhere else refreshed))
        self._layers = max(self._layers, len(self._asked))
        self.refreshes += bool(refreshed)
        self.lookups += len(refreshed)

    def extend(self, tokens: int) -> None:
        """Tokens were read on the last look-up."""
        last = self._spans[-1]
        self._spans[-1] = ReadSpan(last.tokens + tokens, last.voters, last.layers)
