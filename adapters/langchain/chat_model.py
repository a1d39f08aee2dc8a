"""`ChatLongMem`: LangChain's chat model over a dialogue."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config
from pydantic import Field, PrivateAttr, SkipValidation, model_validator

from longmem import Engine, Store
from longmem.adapters.langchain.asking import request_of
from longmem.adapters.langchain.errors import as_model_errors
from longmem.adapters.langchain.messages import ToolLike, as_functions, as_tool_choice
from longmem.adapters.langchain.place import Place, surroundings
from longmem.adapters.langchain.replies import ai_message, event_chunk, last_chunk
from longmem.adapters.langchain.structured import structured
from longmem.dialogue import Dialogue, Request

_IDENTIFYING = (
    "model_name",
    "session",
    "memory",
    "scope",
    "diverge",
    "on_system",
    "owner",
    "temperature",
    "max_tokens",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "stop",
)


class ChatLongMem(BaseChatModel):
    """A chat model that remembers: what was said before is never read again.

        chat = ChatLongMem(engine=Engine.nano(), store=SQLiteStore("chats"))
        chat.invoke("My locker code is 482913.", session="alice")
        chat.invoke("What is my locker code?", session="alice")  # the new question alone is read

    The session is named by the keyword argument or field `session`, else by the ``thread_id`` of the
    call's config or of the graph around it. Without any of them nothing is kept. A list with replies
    in it is compared with what the session holds, and only what is new is read.

    In a graph with a checkpointer, a task that is run again (after a crash, an interrupt, an error)
    and asks the same gets the reply that the session holds; another `idempotency_key` as keyword
    argument asks anew. A session does one exchange at a time: a second one raises
    `SessionInUseError`, which LangChain may retry.

    Further keyword arguments of calls: the fields below from `memory` to `seed`, `tools`,
    `tool_choice`, `response_format`.
    """

    engine: Annotated[Engine | None, SkipValidation] = Field(default=None, exclude=True, repr=False)
    """The loaded model; not needed beside `dialogue`."""
    store: Annotated[Store | None, SkipValidation] = Field(default=None, exclude=True, repr=False)
    """Where sessions live; without one, nothing can be kept."""
    dialogue: Annotated[Dialogue | None, SkipValidation] = Field(
        default=None, exclude=True, repr=False
    )
    """Shared with other adapters over the same store; default: one of its own."""
    session: str | None = None
    """The conversation, where a call does not name another."""
    memory: str = ""
    """Name of a memory of this model's own in each thread: for graphs in which several models, with
    system prompts of their own, work in one thread, or several nodes at once."""
    scope: Literal["auto", "new", "whole"] = "auto"
    """Whether messages are new ones or the whole conversation; see `longmem.dialogue.Request`.
    "auto" takes those of a graph with a checkpointer for the whole one. A graph that shows its model
    no replies needs a `LongMemSaver` on the same store to tell where they belong, or "new"."""
    diverge: Literal["fork", "rollback", "refuse"] = "fork"
    """What to do where messages diverge from what the session holds (time travel, an edited message,
    another answer asked for): answer in a fork, roll the session back, or raise."""
    on_system: Literal["refuse", "keep"] = "refuse"
    """Whether another system prompt, or other tools, than the session's raise or are left out."""
    owner: str | None = None
    """Whom the sessions belong to; owners never see each other's."""
    model_name: str = ""
    """For traces and ``response_metadata``; default: the loaded model's."""
    temperature: float = 0.0
    """0 is greedy."""
    max_tokens: int = 256
    """Longest reply, in tokens."""
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: list[str] | None = None
    """Strings that end a reply."""
    streaming: bool = True
    """False: `stream` gives the whole reply at once."""
    cache: Any = Field(default=False, exclude=True)
    """A cached reply would be in no session: keep it False."""
    _own_dialogue: bool = PrivateAttr(default=False)

    @model_validator(mode="after")
    def _open(self) -> Self:
        if self.dialogue is None:
            if self.engine is None:
                raise ValueError("give engine= (and store=), or a dialogue=")
            self.dialogue, self._own_dialogue = Dialogue(self.engine, self.store), True
        if not self.model_name:
            path = str(self.dialogue.engine.model.config.name_or_path or "")
            kind = str(self.dialogue.engine.model.config.model_type)
            self.model_name = path.rstrip("/").rsplit("/", 1)[-1] or kind
        return self

    def close(self) -> None:
        """Let go of all sessions; what was committed stays. A dialogue that was given stays open."""
        if self._own_dialogue:
            self._dialogue.close()

    @property
    def _dialogue(self) -> Dialogue:
        assert self.dialogue is not None  # `_open` saw to it
        return self.dialogue

    @property
    def _llm_type(self) -> str:
        return "longmem"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _IDENTIFYING}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """What traces say of a call."""
        params = LangSmithParams(
            ls_provider="longmem",
            ls_model_type="chat",
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_temperature=kwargs.get("temperature", self.temperature),
            ls_max_tokens=kwargs.get("max_tokens", self.max_tokens),
        )
        if stopping := stop or self.stop:
            params["ls_stop"] = list(stopping)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of the loaded model's own tokenizer."""
        ids = self._dialogue.engine.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [int(i) for i in ids]

    def bind_tools(
        self,
        tools: Sequence[ToolLike],
        *,
        tool_choice: Any = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools; they are pinned with the system prompt when a session begins.

        Args:
            tools: functions, pydantic classes, `BaseTool`s or OpenAI definitions.
            tool_choice: "auto"; "any", "required" or True: one must be called; "none"; or a name.
            kwargs: further keyword arguments for each call.

        Raises:
            InputError: what is given is no tool, or `tool_choice` names none of them.
        """
        with as_model_errors():
            functions = as_functions(tools)
            choice = as_tool_choice(tool_choice, [function["name"] for function in functions])
        given = [{"type": "function", "function": function} for function in functions]
        return self.bind(tools=given, tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model with replies that fit a schema; see `longmem.adapters.langchain.structured`."""
        return structured(self, schema, method, include_raw, kwargs)

    def invoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """As `BaseChatModel.invoke`; the config's ``thread_id`` names the session."""
        return super().invoke(input, config, **_placed(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """`invoke` for asyncio."""
        return await super().ainvoke(input, config, **_placed(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """As `BaseChatModel.stream`; breaking off leaves no trace in the session."""
        return super().stream(input, config, **_placed(config, kwargs))

    def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """`stream` for asyncio."""
        return super().astream(input, config, **_placed(config, kwargs))

    def stream_events(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """As `BaseChatModel.stream_events`, all versions."""
        return super().stream_events(input, config, **_placed(config, kwargs))

    def astream_events(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Any:
        """`stream_events` for asyncio."""
        return super().astream_events(input, config, **_placed(config, kwargs))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with as_model_errors():
            request, place = request_of(self, messages, stop, kwargs)
            outcome = self._dialogue.reply(request)
        return _result(ai_message(outcome, place, self.model_name))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with as_model_errors():
            request, place = await self._requested(messages, stop, kwargs)
            outcome = await self._dialogue.areply(request)
        return _result(ai_message(outcome, place, self.model_name))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with as_model_errors():
            request, place = request_of(self, messages, stop, kwargs)
            with self._dialogue.stream(request) as exchange:
                for event in exchange:
                    if (chunk := event_chunk(event, exchange.message_id)) is not None:
                        if run_manager:
                            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
                outcome, id = exchange.outcome, exchange.message_id
            yield last_chunk(outcome, place, self.model_name, id)

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        with as_model_errors():
            request, place = await self._requested(messages, stop, kwargs)
            async with self._dialogue.astream(request) as exchange:
                async for event in exchange:
                    if (chunk := event_chunk(event, exchange.message_id)) is not None:
                        if run_manager:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
                outcome, id = exchange.outcome, exchange.message_id
            yield last_chunk(outcome, place, self.model_name, id)

    async def _requested(
        self, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> tuple[Request, Place]:
        """`request_of` in a thread, because it may wait for a checkpoint."""
        asked = partial(request_of, self, messages, stop, options)
        return await self._dialogue.engine.workers.run(asked)


def _placed(config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Hand on what the config tells: what LangChain calls next sees no config."""
    found = surroundings(ensure_config(config))
    return {**kwargs, "surroundings": found} if found and "surroundings" not in kwargs else kwargs


def _result(message: AIMessage) -> ChatResult:
    return ChatResult(generations=[ChatGeneration(message=message)])
