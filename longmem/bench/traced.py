"""An engine that keeps what its decode steps did: choices of blocks, and the likeliest next tokens."""

from __future__ import annotations

from collections.abc import Sequence

from longmem.config import MemoryConfig
from longmem.engine import Engine
from longmem.feeding import Fed, Feed
from longmem.memory import Choice
from longmem.packing import Outcome


class TracedEngine(Engine):
    """An `Engine` whose decode steps can be looked at after a reply. For one session at a time."""

    def __post_init__(self, memory: MemoryConfig | None) -> None:
        super().__post_init__(memory)
        self.forget()

    def forget(self) -> None:
        """Start a new trace."""
        self.choices: list[Choice] = []
        """What look-ups chose."""
        self.fed: list[int] = []
        """The tokens decode steps fed: the last of the header, then the reply's but its last."""
        self.best: list[int] = []
        """After each of them, the token of the greatest logit."""

    def run_pass(self, feeds: Sequence[Feed]) -> Sequence[Outcome]:
        """As `Engine.run_pass`."""
        results = super().run_pass(feeds)
        for feed, fed in zip(feeds, results, strict=True):
            if feed.trace and isinstance(fed, Fed):
                self.choices += fed.reading.choices
                self.fed += feed.ids
                self.best.append(int(fed.logits.argmax()))
        return results
