"""What callers ask of a dialogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from longmem.dialogue.events import Outcome
from longmem.dialogue.message import Message
from longmem.errors import InputError
from longmem.sampling import Sampling

if TYPE_CHECKING:
    from longmem.store import Record

Scope = Literal["auto", "new", "whole"]
Diverge = Literal["fork", "rollback", "refuse"]

_CHOICES = {
    "scope": ("auto", "new", "whole"),
    "diverge": ("fork", "rollback", "refuse"),
    "on_system": ("refuse", "keep"),
}


@dataclass(frozen=True)
class Request:
    """Messages to reply to.

    Args:
        messages: the new ones, or the whole conversation once more; the last is a "user" or "tool"
            message. A system prompt comes first; several in a row are one.
        session: public id of the conversation; a new one is begun. None: nothing is kept.
        scope: "new": the messages follow what was said; "whole": they are the conversation, from
            its first message or, trimmed, from a later one; "auto": whole if there is an
            assistant's among them, or the first is known by its id, else new; so a single edited
            message without an id is new. A trimmed list without ids that begins as the
            conversation does is taken for the whole one.
        at: index of the turn that new messages follow, -1 the start; None: the last one.
        diverge: what to do with a session that went on otherwise behind the last known message:
            leave it and answer in a fork; roll it back; or refuse with `DivergedError`.
        always_fork: answer in a fork even where the session did not go on behind the last known
            message.
        fork_id: public id of the fork; default the session's with a random end.
        on_system: what to do about a system prompt, or tools, other than those pinned in the
            session: refuse with `SystemChangedError`, or keep the pinned.
        store: False answers from the session's memory and keeps nothing.
        owner: whom the session belongs to; others can neither see nor name it.
        metadata: JSON-able details, kept with a new session or fork.
        tools: definitions ``{"name", "description", "parameters"}`` as in OpenAI's functions.
        tool_choice: "auto", "none", "required", or the name of the tool that must be called.
        schema: JSON schema the reply has to fit, or "json" for any JSON object.
        sampling: how to decode.
        idempotency_key: a request with the key of an earlier one gets its stored reply.
        retry: the caller may be sending this request again: if the last exchange read the same
            messages at the same place, its stored reply is the answer.
        records: called with the outcome right before the commit; what it gives becomes durable with
            the exchange.
        message_id: id for the reply's message; default a random one.

    Raises:
        InputError: an argument is none of its choices, or two of them exclude each other.
    """

    messages: Sequence[Message]
    session: str | None = None
    scope: Scope = "auto"
    at: int | None = None
    diverge: Diverge = "fork"
    always_fork: bool = False
    fork_id: str | None = None
    on_system: Literal["refuse", "keep"] = "refuse"
    store: bool = True
    owner: str | None = None
    metadata: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    schema: Mapping[str, Any] | Literal["json"] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    idempotency_key: str | None = None
    retry: bool = False
    records: Callable[[Outcome], Sequence[Record]] | None = None
    message_id: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(self.messages))
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}"
                )
        last = self.messages[-1].role if self.messages else None
        if last not in ("user", "tool"):
            there = f"the last is {last!r}" if last else "there is none"
            raise InputError(f'a request ends with a "user" or "tool" message to reply to; {there}')
        if self.at is not None and self.scope == "whole":
            raise InputError(
                'at= names the turn that new messages follow, and scope="whole" says that these '
                "are the whole conversation; give one of them"
            )
        if self.always_fork and self.diverge != "fork":
            raise InputError(f'always_fork=True goes with diverge="fork", not {self.diverge!r}')
