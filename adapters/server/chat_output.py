"""What comes of an exchange, as a chat completion or its chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from longmem.adapters.server.event_stream import Frames, frame
from longmem.adapters.server.exchange import Run

if TYPE_CHECKING:
    from longmem.dialogue import Outcome
    from longmem.tools import ToolCall


def completion(run: Run, model: str, fingerprint: str) -> dict[str, Any]:
    """The whole reply, with every field OpenAI's clients read."""
    outcome = run.outcome
    message = outcome.message
    content = message.text if message.text or not message.tool_calls else None
    said: dict[str, Any] = {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "annotations": [],
    }
    if message.reasoning:
        said["reasoning_content"] = message.reasoning
    if message.tool_calls:
        said["tool_calls"] = [_call(call) for call in message.tool_calls]
    choice = {
        "index": 0,
        "message": said,
        "logprobs": None,
        "finish_reason": outcome.finish_reason,
    }
    return {
        "id": run.message_id,
        "object": "chat.completion",
        "created": run.created,
        "model": model,
        "choices": [choice],
        "usage": usage(outcome),
        "service_tier": "default",
        "system_fingerprint": fingerprint,
    }


def usage(outcome: Outcome) -> dict[str, Any]:
    """Token counts; what memory held already counts as cached."""
    prompt = outcome.read + outcome.from_memory
    generated = outcome.reply.usage.generated
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": outcome.from_memory, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def chunks(model: str, fingerprint: str, include_usage: bool) -> Frames:
    """The chunks of a streamed completion.

    Args:
        model, fingerprint: as of the whole reply.
        include_usage: one more chunk at the end has the token counts.
    """

    def chunk(run: Run, delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return frame(_head(run) | {"choices": [choice]})

    def _head(run: Run) -> dict[str, Any]:
        head = {
            "id": run.message_id,
            "object": "chat.completion.chunk",
            "created": run.created,
            "model": model,
            "service_tier": "default",
            "system_fingerprint": fingerprint,
        }
        return head | ({"usage": None} if include_usage else {})

    async def frames(run: Run) -> AsyncIterator[str]:
        from longmem.dialogue import TextDelta, ToolCallsReady

        yield chunk(run, {"role": "assistant", "content": "", "refusal": None})
        async for event in run.events():
            if isinstance(event, TextDelta):
                yield chunk(run, {"content": event.text})
            elif isinstance(event, ToolCallsReady):
                for i, call in enumerate(event.calls):
                    yield chunk(run, {"tool_calls": [{"index": i, **_call(call)}]})
        yield chunk(run, {}, run.outcome.finish_reason)
        if include_usage:
            yield frame(_head(run) | {"choices": [], "usage": usage(run.outcome)})
        yield frame("[DONE]")

    return frames


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}
