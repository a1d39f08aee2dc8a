"""The body of /v1/chat/completions, as OpenAI's clients send it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SkipValidation, StringConstraints

from longmem.adapters.server.sampling import SamplingFields

_STRICT = ConfigDict(strict=True)
Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]
"""Up to 16 strings of up to 512 characters, under names of up to 64."""


class Part(BaseModel):
    """A part of a message's content. Only text can be read."""

    model_config = _STRICT

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(BaseModel):
    """Name and arguments of a call; arguments are JSON text."""

    model_config = _STRICT

    name: str
    arguments: str


class Call(BaseModel):
    """A tool call of an assistant's message."""

    model_config = _STRICT

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(BaseModel):
    """One message."""

    model_config = _STRICT

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    id: str | None = None
    tool_calls: Annotated[list[Call], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class Function(BaseModel):
    """A function the model may call."""

    model_config = _STRICT

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A tool; of OpenAI's kinds there are functions."""

    model_config = _STRICT

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """The function that has to be called."""

    model_config = _STRICT

    name: str


class NamedTool(BaseModel):
    """The tool that has to be called."""

    model_config = _STRICT

    type: Literal["function"]
    function: NamedFunction


class JSONSchema(BaseModel):
    """A schema the reply has to fit."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    name: str
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the reply's text has to be."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None


class StreamOptions(BaseModel):
    """Details of a stream."""

    model_config = _STRICT

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatRequest(SamplingFields):
    """A chat completion. What is not listed here has no effect.

    The messages are as they came: there may be many, and `read_messages` looks at one after the other.
    """

    model: str
    messages: Annotated[list[SkipValidation[ChatMessage]], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: Annotated[list[Tool], Field(max_length=128, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    response_format: ResponseFormat | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    modalities: list[Any] | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    prediction: Any = None
    web_search_options: Any = None
