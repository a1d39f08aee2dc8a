"""`Session`: one conversation, resumable by its id."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from longmem.async_reply import AsyncReplyStream
from longmem.errors import SystemChangedError
from longmem.opening import open_session
from longmem.timeline import Timeline
from longmem.tools.definitions import tool_definitions
from longmem.turn_input import TurnLike
from longmem.types import Reply, Turn

if TYPE_CHECKING:
    from longmem.engine import Engine, Progress
    from longmem.store import Store

Tool = Mapping[str, Any]


class Session(Timeline):
    """One conversation: turns in, replies out. Make it with `Engine.session`.

    Args:
        engine: the model that reads and replies.
        id: name of the conversation in its store: at most 256 characters, no path separators.
        store: where it lives; without one it lives as long as this object.
        system: system prompt, pinned as initial tokens: a part of the working set for ever.
        owner: whom it belongs to; kept with the session, checked when it is resumed.
        metadata: JSON-able details, kept with a new session.
        tools: JSON-schema definitions of tools that replies may call, ``{"type": "function",
            "function": {"name": ..., "parameters": ...}}`` each: part of the system turn, as the
            model's chat template writes them.
        create: False refuses a session that the store does not have.
        rebuild: read the stored turns again, for instance under another model.
        progress: called with (tokens read, tokens to read) during a rebuild.

    Raises:
        InputError: the id, the system prompt or the tools are refused.
        SystemChangedError: it was begun with another system prompt or other tools.
        SessionNotFoundError: it belongs to another owner, or is not there and `create` is False.
        FingerprintMismatchError: it was written under another model or memory layout.
        SessionInUseError: it is open in this process.
        StoreError: the store cannot be read.
    """

    def __init__(
        self,
        engine: Engine,
        id: str,
        *,
        store: Store | None = None,
        system: str | None = None,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        tools: Sequence[Tool] | None = None,
        create: bool = True,
        rebuild: bool = False,
        progress: Progress | None = None,
    ) -> None:
        opened = open_session(
            engine,
            id,
            store,
            owner,
            metadata or {},
            create=create,
            rebuild=rebuild,
            progress=progress,
        )
        self._begin(engine, id, store, opened)
        try:
            self.begin(system, tools)
        except BaseException:
            self.close()
            if opened.created and store is not None:
                store.delete(id)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aadd(
        self,
        role_or_turns: str | Sequence[TurnLike],
        text: str | None = None,
        *,
        progress: Progress | None = None,
    ) -> list[Turn]:
        """`add` in a worker thread, where `progress` is called, too."""
        await self._underway.settled()
        call = partial(self.add, role_or_turns, text, progress=progress)
        return await self.engine.workers.run(call)

    async def aask(self, turns: str | Sequence[TurnLike], **options: Any) -> Reply:
        """`ask` in a worker thread, where `finish` and `records` are called, too; if the task is
        cancelled, so is the exchange."""
        return await self.astream(turns, **options).finish()

    def astream(self, turns: str | Sequence[TurnLike], **options: Any) -> AsyncReplyStream:
        """`stream` in worker threads; breaking off or cancelling the task drops the exchange."""
        return AsyncReplyStream(self.stream(turns, **options), self._underway)

    async def aclose(self) -> None:
        """`close` in a worker thread."""
        await self._underway.settled()
        await asyncio.to_thread(self.close)

    @property
    def system(self) -> str | None:
        """The pinned system prompt; None where the session was begun without one."""
        first = self._system_turn()
        return first.text or None if first else None

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools of the system turn."""
        first = self._system_turn()
        return tuple(first.extra.get("tools", ())) if first else ()

    def begin(self, system: str | None, tools: Sequence[Tool] | None = None) -> None:
        """Pin the system prompt and the tools of a new session; check those of an old one. What is
        None is not checked.

        Raises:
            SystemChangedError: it was begun with others.
        """
        if system is None and tools is None:
            return
        if self._conversation.ledger.n_turns == 0:
            if system is not None or tools:
                self.add([Turn("system", system or "", extra=_tools_extra(tools))])
            return
        self._check_begun("system prompt", self.system, system)
        if tools is not None:
            self._check_begun("tools", list(self.tools), _tools_extra(tools).get("tools", []))

    def _check_begun(self, what: str, begun: object, given: object) -> None:
        """Refuse another `given` than the session was begun with; None is not checked."""
        if given is not None and given != begun:
            word = "another system prompt" if what == "system prompt" else "other tools"
            stays = "which stays pinned" if what == "system prompt" else "which stay pinned"
            argument = "system=" if what == "system prompt" else "tools="
            raise SystemChangedError(
                f"session {self.id!r} was begun with {word}, {stays}; resume it without "
                f"{argument}, or begin a new session"
            )

    def _system_turn(self) -> Turn | None:
        first = self.turns(0, 1)
        return first[0] if first and first[0].role == "system" else None


def _tools_extra(tools: Sequence[Tool] | None) -> dict[str, Any]:
    """What is kept with the system turn, as it comes back from a store."""
    return {"tools": tool_definitions(tools)} if tools else {}
