"""`LongMemModel`: a model of PydanticAI that remembers."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from pydantic_ai import RunContext
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models._tool_choice import resolve_tool_choice  # as all adapters read the setting
from pydantic_ai.profiles import ModelProfile, merge_profile
from pydantic_ai.settings import ModelSettings

from longmem.adapters.pydantic_ai.messages import messages_of
from longmem.adapters.pydantic_ai.replies import SYSTEM, StreamedReply, response_of
from longmem.adapters.sampling import sampling_of
from longmem.dialogue import Dialogue, Message, Request
from longmem.sampling import Sampling

_PROFILE = ModelProfile(
    supports_json_schema_output=True,
    supports_json_object_output=True,
    supports_image_input=False,
    supports_document_input=False,
    supports_audio_file_input=False,
    supports_video_input=False,
    supported_native_tools=frozenset(),
    default_framing_announcement="never",  # it would change a pinned system prompt half-way
)


class LongMemModel(Model[Any]):
    """Replies from the memory of a session: the conversation's id is that of its session.

    A run gets the whole message history or only a new prompt, with the same ``conversation_id``;
    either way the memory reads what is new. A history that was edited or cut off goes on, in a fork
    of the session, where it agrees with the memory. Errors that longmem raises on purpose
    (`LongMemError`) reach the caller of the run; files and native tools are refused.

    Args:
        dialogue: engine and store.
        owner: whom the sessions belong to.
        store: False keeps nothing; every request reads all of its messages.
        sampling: how to decode, where the model settings do not say.
        on_system: what to do when system prompt or tools are other than those a session was begun
            with: "refuse", or "keep" the first ones, which stay pinned.
        name: what the model is called in responses.
        settings: default model settings.
        profile: overrides entries of the model profile.
    """

    unsupported_settings = frozenset(
        {
            "extra_body",
            "extra_headers",
            "frequency_penalty",
            "logit_bias",
            "max_retries",
            "parallel_tool_calls",
            "presence_penalty",
            "service_tier",
            "timeout",
        }
    )

    def __init__(
        self,
        dialogue: Dialogue,
        *,
        owner: str | None = None,
        store: bool = True,
        sampling: Sampling | None = None,
        on_system: Literal["refuse", "keep"] = "refuse",
        name: str = "longmem",
        settings: ModelSettings | None = None,
        profile: ModelProfile | None = None,
    ) -> None:
        super().__init__(settings=settings, profile=merge_profile(_PROFILE, profile))
        self.dialogue, self.owner, self.store = dialogue, owner, store
        self.sampling = sampling or Sampling()
        self.on_system: Literal["refuse", "keep"] = on_system
        self._name = name

    @property
    def provider(self) -> None:
        """There is none: the model runs here."""
        return None

    @property
    def model_name(self) -> str:
        """What the model is called."""
        return self._name

    @property
    def system(self) -> str:
        """ "longmem"."""
        return SYSTEM

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """The reply to the messages; see `LongMemModel` for what is read and stored."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        outcome = await self.dialogue.areply(self._request(messages, settings or {}, parameters))
        return response_of(outcome, self._name)

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse, None]:
        """The reply piece by piece. Leaving it before the end drops the exchange."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        request = self._request(messages, settings or {}, parameters)
        async with self.dialogue.astream(request) as exchange:
            yield StreamedReply(parameters, exchange, self._name)

    def _request(
        self,
        messages: Sequence[ModelMessage],
        settings: ModelSettings,
        parameters: ModelRequestParameters,
    ) -> Request:
        said = messages_of(messages)
        session = messages[-1].conversation_id if self.store and messages else None
        tools = [
            {
                "name": tool.name,
                "description": tool.description or "",
                "parameters": tool.parameters_json_schema,
            }
            for tool in parameters.declared_tool_defs.values()
        ]
        return Request(
            messages=self._with_instructions(said, messages, parameters),
            session=session,
            on_system=self.on_system,
            owner=self.owner,
            tools=tools,
            tool_choice=_tool_choice(settings, parameters),
            schema=_schema(parameters),
            sampling=_sampling(self.sampling, settings),
            message_id=f"msg_{secrets.token_hex(16)}",
        )

    def _with_instructions(
        self,
        said: list[Message],
        messages: Sequence[ModelMessage],
        parameters: ModelRequestParameters,
    ) -> list[Message]:
        """Instructions stand behind the system prompt, as with every other adapter."""
        parts = self._get_instruction_parts(messages, parameters) or ()
        leading = next((i for i, m in enumerate(said) if m.role != "system"), len(said))
        told = [Message("system", part.content) for part in parts]
        return [*said[:leading], *told, *said[leading:]]


def _schema(parameters: ModelRequestParameters) -> dict[str, Any] | Literal["json"] | None:
    if parameters.output_mode == "native" and parameters.output_object is not None:
        return parameters.output_object.json_schema
    return "json" if parameters.output_mode == "prompted" else None


def _sampling(base: Sampling, settings: ModelSettings) -> Sampling:
    stop = settings.get("stop_sequences")
    return sampling_of(
        base,
        max_new_tokens=settings.get("max_tokens"),
        temperature=settings.get("temperature"),
        top_p=settings.get("top_p"),
        top_k=settings.get("top_k"),
        seed=settings.get("seed"),
        stop=tuple(stop) if stop else None,
    )


def _tool_choice(settings: ModelSettings, parameters: ModelRequestParameters) -> str:
    names = set(parameters.declared_tool_defs)
    choice = resolve_tool_choice(settings, parameters)
    if not names:
        return "auto"
    if isinstance(choice, str):
        return choice
    mode, chosen = choice
    if names <= chosen:
        return mode
    if mode == "required" and len(chosen & names) == 1:
        return next(iter(chosen & names))
    raise UserError(
        f"tool_choice leaves {sorted(chosen)} of the tools {sorted(names)}, and longmem takes all of "
        "them or one; name one tool, or give the agent only those it may call"
    )
