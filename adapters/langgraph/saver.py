"""`LongMemSaver`: LangGraph's checkpointer over a store's records."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence, Set
from itertools import islice
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from longmem.adapters.langchain.place import Place
from longmem.adapters.langgraph.async_forms import AsyncForms
from longmem.adapters.langgraph.checkpoints import Checkpoints, without_parents
from longmem.adapters.langgraph.listing import address, candidates, config_of
from longmem.adapters.langgraph.retention import latest_of_each, needed
from longmem.adapters.langgraph.rows import Address, Head, pack, unpack
from longmem.adapters.langgraph.state_replies import last_reply
from longmem.adapters.langgraph.stored_sessions import StoredSessions
from longmem.adapters.langgraph.thread_memory import ThreadMemory
from longmem.dialogue import Dialogue
from longmem.errors import InputError
from longmem.store import Store


class LongMemSaver(AsyncForms):
    """Checkpoints as text in the database of the sessions; verbs on a thread act on its memory, too.

        chat = ChatLongMem(engine=Engine.nano(), store=store)
        saver = LongMemSaver(store, dialogue=chat.dialogue)
        agent = create_react_agent(chat, tools, checkpointer=saver)

    What a verb does to the thread's sessions (`ChatLongMem` names them after the thread):

        delete_thread     deletes all of them
        copy_thread       forks all of them under the new thread's name; no token is read
        prune             rolls each back to the last reply that a checkpoint which is left holds,
                          and deletes the branches on which none of these ends
        delete_for_runs   the same

    Every checkpoint that is left can be gone on from, and nothing that none of them holds can be
    recalled. Checkpoints from which channels with stored updates (`DeltaChannel`) are rebuilt stay.

    Args:
        store: where they lie. Its owner's threads are seen, no others.
        dialogue: that of the graph's `ChatLongMem`, so that sessions in memory can be changed. Without
            it, sessions that are open in this process raise SessionInUseError.
        owner: as of `ChatLongMem`.
        erase: leave no trace on disk of what is deleted; rewrites the whole database, see
            `longmem.Store.scrub`.
        serde: makes bytes of values; default LangGraph's own, which never unpickles.

    Every verb raises:
        StoreError: the store cannot do it; nothing was changed.
    """

    def __init__(
        self,
        store: Store,
        *,
        dialogue: Dialogue | None = None,
        owner: str | None = None,
        erase: bool = False,
        serde: SerializerProtocol | None = None,
    ) -> None:
        super().__init__(serde=serde)
        self.store, self.owner, self.erase = store, owner, erase
        self._checkpoints = Checkpoints(store.records, owner or "")
        self._memory = ThreadMemory(dialogue or StoredSessions(store), owner)
        self._writing = threading.Lock()

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that `config` names, or the thread's latest; None if there is none."""
        head = self._head(*address(config))
        return None if head is None else self._tuple(head)

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """Checkpoints, the greatest id first.

        Args:
            config: of one thread, and one namespace if it names one; None: of all threads.
            filter: what their metadata must hold.
            before: only those with lesser ids than the one that this names.
            limit: at most so many.
        """
        bound = get_checkpoint_id(before) if before else None
        found = (self._tuple(head) for head in self._heads(config, bound, filter or {}))
        return islice(found, limit if limit is None else max(limit, 0))

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, and the values that `new_versions` names, in one transaction."""
        thread, namespace, parent = address(config)
        details = get_serializable_checkpoint_metadata(config, metadata)
        bare = {name: each for name, each in checkpoint.items() if name != "channel_values"}
        run = details.get("run_id")
        head = Head(
            Address(thread, namespace, checkpoint["id"]),
            parent,
            None if run is None else str(run),
            checkpoint["channel_versions"],
            list(details.get("counters_since_delta_snapshot") or ()),
            pack(self.serde, bare),
            pack(self.serde, details),
        )
        self._checkpoints.put(head, checkpoint["channel_values"], new_versions, self.serde)
        return config_of(head.at)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store what a task wrote to a checkpoint; the same twice is stored once."""
        thread, namespace, id = address(config)
        if id is None:
            raise InputError(f"thread {thread!r}: writes belong to a checkpoint; name its id")
        with self._writing:
            at = Address(thread, namespace, id)
            self._checkpoints.put_writes(at, writes, task_id, task_path, self.serde)

    def session_of(self, config: RunnableConfig, memory: str = "") -> tuple[str, int] | None:
        """Where the conversation of a checkpoint stands: (public id of the session, index of the turn)
        of the last reply that its state holds.

        Args:
            config: names a checkpoint, or a thread whose latest is meant.
            memory: as of `ChatLongMem`.

        Returns:
            None if there is no such checkpoint, or no reply in it.
        """
        thread, namespace, id = address(config)
        head = self._head(thread, namespace, id)
        found = None if head is None else last_reply(self._checkpoints, head, memory)
        if found is None:
            return None
        branch, turn = found
        session = Place(thread, memory, branch).session
        return None if session is None else (session, turn)

    def delete_thread(self, thread_id: str) -> None:
        """Delete a thread's checkpoints and its memory.

        Raises:
            SessionInUseError: the thread's model is replying; its checkpoints stay.
        """
        self._delete(thread_id)
        self._clean()

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread's checkpoints, and fork its memory.

        Raises:
            InputError: the target has checkpoints or a session already; nothing was changed.
        """
        if self._checkpoints.heads(target_thread_id) or self._memory.of(target_thread_id):
            raise InputError(
                f"thread {target_thread_id!r} is there already; delete it, or copy "
                f"{source_thread_id!r} to another id"
            )
        try:
            self._checkpoints.copy_thread(source_thread_id, target_thread_id)
            self._memory.copy(source_thread_id, target_thread_id)
        except BaseException:
            self._delete(target_thread_id)
            raise

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete a thread's checkpoints but the latest of each namespace, or all of them.

        Args:
            thread_ids: the threads; those that are not there are left out.
            strategy: "keep_latest" or "delete".

        Raises:
            InputError: there is no such strategy.
            SessionInUseError: a thread's model is replying; those before it are pruned.
        """
        if strategy not in ("keep_latest", "delete"):
            raise InputError(f'there is no strategy {strategy!r}; choose "keep_latest" or "delete"')
        for thread in thread_ids:
            if strategy == "delete":
                self._delete(thread)
                continue
            heads = self._checkpoints.heads(thread)
            latest = latest_of_each(heads)
            stay = {head.at for head in latest} | needed(self._checkpoints, latest)
            self._drop(thread, heads, {head.at for head in heads} - stay)
        self._clean()

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that these runs made, and what the memory holds of them alone.

        Raises:
            InputError: a checkpoint that is left needs one of them to be read (`DeltaChannel`);
                nothing was changed.
            SessionInUseError: a thread's model is replying; the threads before it are done.
        """
        doomed = {at for run in run_ids for at in self._checkpoints.of_run(str(run))}
        threads = {at.thread: self._checkpoints.heads(at.thread) for at in doomed}
        for thread, heads in threads.items():
            left = [head for head in heads if head.at not in doomed]
            if needed(self._checkpoints, left) & doomed:
                raise InputError(
                    f"thread {thread!r}: checkpoints of later runs hold updates alone, and are read "
                    "with the help of those to delete; delete the later runs as well, or the thread"
                )
        for thread, heads in threads.items():
            self._drop(thread, heads, doomed)
        self._clean()

    def get_next_version(self, current: Any, channel: None) -> str:
        """A version above `current` that no other branch of the thread has."""
        last = int(str(current).split(".")[0]) if current is not None else 0
        return f"{last + 1:032}.{random.random():016}"

    def _delete(self, thread: str) -> None:
        self._memory.delete(thread)
        self._checkpoints.drop_thread(thread)

    def _drop(self, thread: str, heads: Sequence[Head], doomed: Set[Address]) -> None:
        """Delete checkpoints of a thread: first from its memory, so that a crash in between leaves
        checkpoints whose memory is read anew, and never a memory without its checkpoints."""
        gone = {head.at: head for head in heads if head.at in doomed}
        stay = [head for head in heads if head.at not in doomed]
        if not gone:
            return
        if not stay:
            self._delete(thread)
            return
        self._memory.retain(
            thread,
            [self._checkpoints.replies(head) for head in stay],
            [self._checkpoints.replies(head) for head in gone.values()],
        )
        self._checkpoints.drop(gone.values(), stay, without_parents(stay, gone))

    def _head(self, thread: str, namespace: str, id: str | None) -> Head | None:
        if id is None:
            return self._checkpoints.latest(thread, namespace)
        return self._checkpoints.head(Address(thread, namespace, id))

    def _clean(self) -> None:
        if self.erase:
            self.store.scrub()

    def _heads(
        self, config: RunnableConfig | None, before: str | None, filter: dict[str, Any]
    ) -> Iterator[Head]:
        for head in candidates(self._checkpoints, config, before):
            metadata = unpack(self.serde, head.metadata) if filter else {}
            if all(metadata.get(name) == wanted for name, wanted in filter.items()):
                yield head

    def _tuple(self, head: Head) -> CheckpointTuple:
        checkpoint: Checkpoint = unpack(self.serde, head.checkpoint)
        checkpoint["channel_values"] = self._checkpoints.values(head, self.serde)
        parent = None if head.parent is None else config_of(head.at._replace(id=head.parent))
        return CheckpointTuple(
            config=config_of(head.at),
            checkpoint=checkpoint,
            metadata=unpack(self.serde, head.metadata),
            parent_config=parent,
            pending_writes=self._checkpoints.writes(head.at, self.serde),
        )
