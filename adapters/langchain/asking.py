"""One call of a `ChatLongMem` as a request to its dialogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import ensure_config

from longmem.adapters.langchain.messages import as_messages
from longmem.adapters.langchain.options import answer_of, check_options, sampling_of, task_key
from longmem.adapters.langchain.place import Place, branch_of, surroundings
from longmem.dialogue import Dialogue, Request

if TYPE_CHECKING:
    from longmem.adapters.langchain.chat_model import ChatLongMem

_CHOICES = ("scope", "diverge", "on_system", "owner")


def request_of(
    chat: ChatLongMem,
    messages: Sequence[BaseMessage],
    stop: Sequence[str] | None,
    options: Mapping[str, Any],
) -> tuple[Request, Place]:
    """What to ask, and in which session. May wait for a checkpoint to be written.

    Args:
        chat: the model; its fields are the defaults.
        messages, stop: of the call.
        options: its keyword arguments; "surroundings" holds what its config told.

    Raises:
        InputError, ConfigError: the call cannot be served as it is.
    """
    check_options(options, chat.model_name)
    fields = {**dict(chat), **options}
    around = options.get("surroundings") or surroundings(ensure_config())
    thread = options.get("session") or chat.session or around.get("thread")
    memory = fields["memory"]
    place = Place(thread, memory, branch_of(messages, memory))
    read, answer = as_messages(messages), answer_of(options)
    key, asked = options.get("idempotency_key"), {name: fields[name] for name in _CHOICES}
    if "task" in around and thread == around["thread"]:
        key = key or task_key(around["task"], read, memory, answer)
        if asked["scope"] == "auto" and _is_state(messages):
            branch, further = _of_state(chat.dialogue, fields["owner"], messages, place, around)
            place, asked = Place(thread, memory, branch), {**asked, **further}
    request = Request(
        read,
        session=place.session,
        metadata=None if thread is None else {"thread": thread},
        sampling=sampling_of(fields, stop or chat.stop),
        idempotency_key=None if thread is None else key,
        message_id=f"lm-{uuid4()}",
        **asked,
        **answer,
    )
    return request, place


def _is_state(messages: Sequence[BaseMessage]) -> bool:
    """Whether messages come from a graph's state: it gives each of them an id."""
    return all(message.id for message in messages if message.type != "system")


def _of_state(
    dialogue: Dialogue | None,
    owner: str | None,
    messages: Sequence[BaseMessage],
    place: Place,
    around: Mapping[str, str],
) -> tuple[str, dict[str, Any]]:
    """The branch, and how to take messages of a graph's state: as the whole conversation, or, where
    a graph shows the model no reply although its state ends with one, as what follows that."""
    shows_reply = any(isinstance(message, AIMessage) for message in messages)
    store = dialogue.store if dialogue else None
    if shows_reply or store is None or "checkpoint" not in around:
        return place.branch, {"scope": "whole"}
    from longmem.adapters.langgraph.rows import Address
    from longmem.adapters.langgraph.state_replies import reply_before

    at = Address(around["thread"], around["namespace"], around["checkpoint"])
    found = reply_before(store.records, owner, at, place.memory)
    if found is None:
        return place.branch, {"scope": "whole"}
    branch, turn = found
    return branch, {"scope": "new", "at": turn}
