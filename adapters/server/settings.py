"""`Settings`: everything about the server that is no matter of the model or the store."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from longmem.errors import ConfigError

OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LEAST_KEY = 8


@dataclass(frozen=True)
class ApiKey:
    """A key, and the owner whose sessions it opens.

    Args:
        owner: 1 to 64 characters out of A-Z, a-z, 0-9, "_" and "-".
        key: at least 8 visible ASCII characters.

    Raises:
        ConfigError: one of them is refused; the message does not show the key.
    """

    owner: str
    key: str = field(repr=False)

    def __post_init__(self) -> None:
        if not OWNER.fullmatch(self.owner):
            raise ConfigError(
                f"owner {self.owner!r} of an API key is refused: use 1 to 64 letters, digits, _ or -"
            )
        if len(self.key) < _LEAST_KEY or not all("!" <= char <= "~" for char in self.key):
            raise ConfigError(
                f"the API key of owner {self.owner!r} is refused: use at least {_LEAST_KEY} visible "
                "ASCII characters"
            )


@dataclass(frozen=True)
class Settings:
    """How the server behaves.

    Args:
        model: the name clients give as ``model``.
        keys: who may come in; without any, everybody who reaches the address, as one owner.
        operators: owners that may read /metrics, which shows all owners together; without any it is
            the only owner's, if there is one alone.
        max_concurrent: most requests of one owner at a time.
        rate: most requests of one owner per minute; None: no limit.
        max_body: longest request body, in bytes.
        max_values: most JSON values in a body; a message is two or three of them, a list of parts more.
        default_tokens: longest reply of a request that names no limit, in tokens.
        max_tokens: most tokens a request may ask for.
        diverge: what happens where a message list departs from its session: "fork", "rollback" or
            "refuse"; the header ``x-session-diverge`` says otherwise for one request.
        header_seconds: a connection on which no request has begun after this long is cut.
        body_seconds: a request whose body is not there after this long is refused.
        send_seconds: a client that takes nothing for this long is cut.
        first_event_seconds: how long a stream waits for its first event, so that what fails before it
            is an HTTP status.
        ping_seconds: a stream that has nothing to say for this long sends a comment.
        drain_seconds: how long running replies may take to end after SIGTERM.

    Raises:
        ConfigError: a limit is not above 0, or an operator has no key.
    """

    model: str = "longmem"
    keys: tuple[ApiKey, ...] = field(default=(), repr=False)
    operators: tuple[str, ...] = ()
    max_concurrent: int = 64
    rate: float | None = None
    max_body: int = 16 * 2**20
    max_values: int = 100_000
    default_tokens: int = 1024
    max_tokens: int = 32_768
    diverge: Literal["fork", "rollback", "refuse"] = "fork"
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    first_event_seconds: float = 10.0
    ping_seconds: float = 15.0
    drain_seconds: float = 120.0

    def __post_init__(self) -> None:
        for name in ("max_concurrent", "max_body", "max_values", "default_tokens", "max_tokens"):
            self._check(name, least=1)
        for name in ("header", "body", "send", "first_event", "ping"):
            self._check(f"{name}_seconds")
        if self.rate is not None:
            self._check("rate")
        owners = {key.owner for key in self.keys}
        if unknown := set(self.operators) - owners:
            raise ConfigError(f"operator {min(unknown)!r} has no API key; give it one")

    @property
    def metrics_owners(self) -> frozenset[str]:
        """Owners that may read /metrics; without keys everybody may."""
        owners = frozenset(key.owner for key in self.keys)
        return frozenset(self.operators) or (owners if len(owners) == 1 else frozenset())

    def _check(self, name: str, least: float = 0.0) -> None:
        value = getattr(self, name)
        if not (value >= least and 0 < value < math.inf):
            raise ConfigError(f"{name} is {value}; it must be above 0")
