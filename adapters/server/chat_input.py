"""From a chat completion's body and headers to what is asked of the dialogue."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from starlette.datastructures import Headers

from longmem.adapters.server.chat_messages import read_messages
from longmem.adapters.server.chat_models import ChatRequest, NamedTool
from longmem.adapters.server.errors import ApiError, unsupported
from longmem.adapters.server.exchange import from_header
from longmem.adapters.server.sampling import to_sampling
from longmem.adapters.server.settings import Settings

if TYPE_CHECKING:
    from longmem.dialogue import Request as DialogueRequest

_LONGEST_KEY = 255
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "functions": (None, []),
    "function_call": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
}
"""Parameters that would be without effect, and the values with which that is right."""


def chat_request(
    body: ChatRequest, headers: Headers, owner: str | None, settings: Settings, id: str
) -> DialogueRequest:
    """What a chat completion asks of the dialogue.

    Args:
        body: the request.
        headers: ``x-session-id`` names the session; ``x-session-scope`` ("auto", "new", "whole"),
            ``x-session-diverge`` and ``x-session-system`` say how the messages go with it;
            ``idempotency-key`` and ``x-stainless-retry-count`` make repeats known.
        owner: whose session it is.
        settings: the server's.
        id: for the reply.

    Raises:
        RequestValidationError: a message is none.
        ApiError: a part of the dialect that longmem does not have, or a model that is not served.
        LongMemError: values that cannot work.
    """
    from longmem.dialogue import Request as DialogueRequest

    check_model(body.model, settings)
    _refuse_ignored(body)
    limit = body.max_completion_tokens or body.max_tokens
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    return DialogueRequest(
        read_messages(body.messages),
        session=_session(headers),
        scope=header_choice(headers, "x-session-scope", ("auto", "new", "whole")),
        diverge=header_choice(
            headers, "x-session-diverge", ("fork", "rollback", "refuse"), settings.diverge
        ),
        on_system=header_choice(headers, "x-session-system", ("refuse", "keep")),
        store=body.store is not False,
        owner=owner,
        metadata=body.metadata,
        tools=[_function(tool.function.model_dump()) for tool in body.tools or ()],
        tool_choice=_tool_choice(body),
        schema=_schema(body),
        sampling=to_sampling(settings, body, limit, stop),
        idempotency_key=idempotency_key(headers),
        retry=is_retry(headers),
        message_id=id,
    )


def check_model(model: str, settings: Settings) -> None:
    """Refuse a model that is not served.

    Raises:
        ApiError: 404 model_not_found.
    """
    if model != settings.model:
        raise ApiError(
            404,
            "model_not_found",
            f"there is no model {model!r} here; this server has {settings.model!r}",
            "model",
        )


def idempotency_key(headers: Headers) -> str | None:
    """The header ``Idempotency-Key``; both OpenAI clients can send it.

    Raises:
        ApiError: it is empty or longer than 255 characters.
    """
    key = headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _LONGEST_KEY:
        raise ApiError(
            400,
            "invalid_value",
            f"the header Idempotency-Key has {len(key):,} characters; use 1 to {_LONGEST_KEY}",
            "idempotency-key",
        )
    return key


def is_retry(headers: Headers) -> bool:
    """Whether OpenAI's client says that it sends this request again."""
    count = headers.get("x-stainless-retry-count", "0")
    return count.isascii() and count.isdecimal() and count.strip("0") != ""


def header_choice(
    headers: Headers, name: str, allowed: tuple[str, ...], default: str | None = None
) -> Any:
    """One of a few words in a header; the first, or `default`, where there is none.

    Raises:
        ApiError: another word.
    """
    value = headers.get(name, default or allowed[0])
    if value not in allowed:
        raise ApiError(
            400,
            "invalid_value",
            f"the header {name} is {value!r}; it is one of {', '.join(allowed)}",
            name,
        )
    return value


def _session(headers: Headers) -> str | None:
    session = headers.get("x-session-id")
    if session is not None and not session.strip():
        raise ApiError(400, "invalid_value", "the header x-session-id is empty", "x-session-id")
    return None if session is None else from_header(session)


def _function(given: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k != "strict" and v is not None}


def _tool_choice(body: ChatRequest) -> str:
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        choice_name, known = choice.function.name, [t.function.name for t in body.tools or ()]
        if choice_name not in known:
            raise ApiError(
                400,
                "unknown_tool",
                f"tool_choice names {choice_name!r}, which is not among the tools",
                "tool_choice",
            )
        return choice_name
    if choice == "required" and not body.tools:
        raise ApiError(
            400, "invalid_value", "tool_choice is required, and there are no tools", "tool_choice"
        )
    return choice or "auto"


def _schema(body: ChatRequest) -> Mapping[str, Any] | Literal["json"] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json"
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise ApiError(
            400,
            "missing_required_parameter",
            "response_format of type json_schema needs json_schema.schema",
            "response_format.json_schema.schema",
        )
    return wanted.json_schema.schema_


def _refuse_ignored(body: ChatRequest) -> None:
    for name, neutral in _NEUTRAL.items():
        if getattr(body, name) not in neutral:
            raise unsupported(
                name, f"{name} is not supported here; leave it out (n is 1, text is all there is)"
            )
