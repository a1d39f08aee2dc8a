"""The response object, with every field that OpenAI's clients read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from longmem.adapters.server.items import Item, message_items
from longmem.adapters.server.responses_body import ResponseBody
from longmem.dialogue import Outcome


@dataclass(frozen=True)
class Draft:
    """A response that is being made.

    Args:
        id: of the response.
        message_id: of its message.
        body: the request.
        created_at: Unix seconds.
        instructions: those that hold, also where the request left them out.
    """

    id: str
    message_id: str
    body: ResponseBody
    created_at: int
    instructions: str | None = None

    def under(self, instructions: str | None) -> Draft:
        """The same, where these instructions hold."""
        return replace(self, instructions=instructions)

    def started(self) -> dict[str, Any]:
        """The object before anything was said."""
        return self._object("in_progress", [])

    def finished(self, outcome: Outcome) -> dict[str, Any]:
        """The object when all was said."""
        cut = outcome.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        ended: dict[str, Any] = {
            "completed_at": None if cut else int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": usage(outcome),
        }
        return self._object(status, message_items(outcome.message, status=status)) | ended

    def failed(self, code: str, message: str) -> dict[str, Any]:
        """The object when it broke off."""
        return self._object("failed", []) | {"error": {"code": code, "message": message}}

    def _object(self, status: str, output: Sequence[Item]) -> dict[str, Any]:
        body = self.body
        conversation = body.conversation_id
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "completed_at": None,
            "conversation": None if conversation is None else {"id": conversation},
            "error": None,
            "incomplete_details": None,
            "instructions": self.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": list(output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.keeps,
            "temperature": body.temperature,
            "text": _text(body),
            "tool_choice": _tool_choice(body),
            "tools": [_tool(tool.model_dump()) for tool in body.tools or ()],
            "top_logprobs": 0,
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": body.user,
        }


def usage(outcome: Outcome) -> dict[str, Any]:
    """Token counts: history that memory served is cached input."""
    cached, written = outcome.from_memory, outcome.reply.usage.generated
    return {
        "input_tokens": outcome.read + cached,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": outcome.read},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": outcome.read + cached + written,
    }


def _text(body: ResponseBody) -> dict[str, Any]:
    form = body.text.format if body.text else None
    verbosity = (body.text.verbosity if body.text else None) or "medium"
    given = form.model_dump(by_alias=True, exclude_none=True) if form else {"type": "text"}
    return {"format": given, "verbosity": verbosity}


def _tool_choice(body: ResponseBody) -> Any:
    given = body.tool_choice
    if given is None or isinstance(given, str):
        return given or "auto"
    return given.model_dump(exclude_none=True)


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    return {**given, "strict": bool(given["strict"])}
