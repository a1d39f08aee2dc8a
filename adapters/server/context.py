"""`Context`: what every router needs, in one place."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from fastapi import Request

from longmem.adapters.server.fingerprint import system_fingerprint
from longmem.adapters.server.metrics import Metrics
from longmem.adapters.server.settings import Settings
from longmem.adapters.server.traffic import Traffic

if TYPE_CHECKING:
    from longmem.dialogue import Dialogue


@dataclass
class Context:
    """The parts of one application.

    Args:
        dialogue: who reads and replies.
        settings: how the server behaves.
    """

    dialogue: Dialogue
    settings: Settings
    started_at: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds."""
    fingerprint: str = field(init=False)
    """OpenAI's ``system_fingerprint``: changes with weights, tokenizer, template and layout."""

    def __post_init__(self) -> None:
        # Reads every weight: now, and not while requests wait.
        self.fingerprint = system_fingerprint(self.dialogue.engine.fingerprint)

    @cached_property
    def metrics(self) -> Metrics:
        """Counters of this application, in a registry of their own."""
        return Metrics(self.dialogue, self.traffic)

    @cached_property
    def traffic(self) -> Traffic:
        """Requests under way."""
        return Traffic()

    def owner(self, request: Request) -> str | None:
        """Whose key the request came with; None where no keys are asked for."""
        owner: str | None = request.state.owner
        return owner
