"""The body of ``POST /v1/responses``, and what of it goes into a request of the dialogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from longmem.adapters.server.chat_models import Metadata, Name
from longmem.adapters.server.errors import ApiError, unsupported
from longmem.adapters.server.sampling import SamplingFields

_STRICT = ConfigDict(strict=True)
_MOST_TOOLS = 128

Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class ConversationParam(BaseModel):
    """A conversation, as an object."""

    model_config = _STRICT

    id: Id


class FunctionTool(BaseModel):
    """A function the model may call; other types of tools are refused."""

    model_config = _STRICT

    type: str
    name: Name | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class TextFormat(BaseModel):
    """The form of the reply."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextConfig(BaseModel):
    """How the reply is to be written."""

    model_config = _STRICT

    format: TextFormat | None = None
    verbosity: str | None = None


class ToolChoice(BaseModel):
    """The function that has to be called."""

    model_config = _STRICT

    type: str
    name: str | None = None


class ResponseBody(SamplingFields):
    """What is asked for. What is not listed here, or only steers OpenAI's own service, has no effect."""

    model: str
    input: str | list[Any] | None = None
    instructions: str | None = None
    previous_response_id: Id | None = None
    conversation: Id | ConversationParam | None = None
    store: bool | None = None
    stream: bool | None = None
    metadata: Metadata | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=_MOST_TOOLS, fail_fast=True)] | None = (
        None
    )
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tool_calls: int | None = None
    top_logprobs: int | None = None
    background: bool | None = None
    prompt: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def conversation_id(self) -> str | None:
        """The conversation, in whichever form it was given."""
        given = self.conversation
        return given.id if isinstance(given, ConversationParam) else given

    @property
    def keeps(self) -> bool:
        """Whether the response is stored; it is unless asked otherwise."""
        return self.store is not False

    def check(self) -> None:
        """Refuse what excludes each other, and what longmem does not have.

        Raises:
            ApiError: 400.
        """
        if self.previous_response_id is not None and self.conversation is not None:
            raise ApiError(
                400,
                "mutually_exclusive_parameters",
                "previous_response_id and conversation exclude each other; give one of them",
                "previous_response_id",
            )
        for name in ("background", "prompt", "top_logprobs"):
            if getattr(self, name):
                raise unsupported(name, f"{name} is not supported here; leave it out")

    def definitions(self) -> list[Mapping[str, Any]]:
        """The tools as the dialogue takes them.

        Raises:
            ApiError: 400 for a tool that is no function, or has no name.
        """
        return [_definition(tool, f"tools[{i}]") for i, tool in enumerate(self.tools or ())]

    def choice(self) -> str:
        """ "auto", "none", "required" or the name of the function that has to be called.

        Raises:
            ApiError: 400 for another kind of choice, or one that the tools do not allow.
        """
        given = self.tool_choice or "auto"
        if given == "required" and not self.tools:
            raise _refused("tool_choice is required, and there are no tools", "tool_choice")
        if isinstance(given, str):
            return given
        if given.type != "function" or given.name is None:
            raise unsupported(
                "tool_choice",
                'tool_choice is "auto", "none", "required" or {"type": "function", "name": ...}',
            )
        if given.name not in [tool.name for tool in self.tools or ()]:
            message = f"tool_choice names {given.name!r}, which is not among the tools"
            raise ApiError(400, "unknown_tool", message, "tool_choice")
        return given.name

    def schema_of_reply(self) -> Mapping[str, Any] | Literal["json"] | None:
        """What the reply has to fit.

        Raises:
            ApiError: 400 for a json_schema without a schema.
        """
        form = self.text.format if self.text else None
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return "json"
        if form.schema_ is None:
            raise _missing("text.format of type json_schema needs a schema", "text.format.schema")
        return form.schema_


def _definition(tool: FunctionTool, where: str) -> Mapping[str, Any]:
    if tool.type != "function":
        raise unsupported(
            f"{where}.type", f"{where} is of type {tool.type!r}; only function tools are known here"
        )
    if tool.name is None:
        raise _missing(f"{where} has no name", f"{where}.name")
    parameters = tool.parameters or {"type": "object", "properties": {}}
    named: dict[str, Any] = {"name": tool.name, "parameters": parameters}
    return named | ({"description": tool.description} if tool.description else {})


def _refused(message: str, param: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param)


def _missing(message: str, param: str) -> ApiError:
    return ApiError(400, "missing_required_parameter", message, param)
