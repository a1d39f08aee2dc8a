"""The events of a streamed response, in OpenAI's order and with every field its clients read.

response.created, response.in_progress,
output_item.added, content_part.added, output_text.delta ..., output_text.done,
    content_part.done, output_item.done                            (the text, if there is one)
output_item.added, function_call_arguments.delta, function_call_arguments.done,
    output_item.done                                               (for each tool call)
response.completed, response.incomplete or response.failed
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from longmem.adapters.server.event_stream import frame
from longmem.adapters.server.items import Item, output_text


class Events:
    """Writes the frames of one stream; it counts them, and knows what has been begun.

    Args:
        message_id: of the reply's message item.
    """

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        self._sequence = 0
        self._text: str | None = None

    def begin(self, response: dict[str, Any]) -> Iterator[str]:
        """The first frames; `response` has no output yet."""
        yield self._frame("response.created", response=response)
        yield self._frame("response.in_progress", response=response)

    def text(self, delta: str) -> Iterator[str]:
        """The next characters of the answer."""
        if self._text is None:
            yield from self._open_message()
        self._text = (self._text or "") + delta
        yield self._frame("response.output_text.delta", **self._place, delta=delta, logprobs=[])

    def end(self, response: dict[str, Any]) -> Iterator[str]:
        """The last frames: what of `response`'s output was not written yet, and `response` itself."""
        for index, item in enumerate(response["output"]):
            if item["type"] == "message":
                yield from self._close_message(item)
            else:
                yield from self._call(index, item)
        yield self._frame(f"response.{response['status']}", response=response)

    def replay(self, response: dict[str, Any]) -> Iterator[str]:
        """All frames of a response that was made before."""
        unsaid: dict[str, Any] = {
            "status": "in_progress",
            "output": [],
            "usage": None,
            "completed_at": None,
        }
        yield from self.begin(response | unsaid | {"incomplete_details": None})
        yield from self.end(response)

    @property
    def _place(self) -> dict[str, Any]:
        """Where text is written: into the first item."""
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _open_message(self) -> Iterator[str]:
        item = {
            "id": self._message_id,
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        yield self._frame("response.output_item.added", output_index=0, item=item)
        yield self._frame("response.content_part.added", **self._place, part=output_text(""))

    def _close_message(self, item: Item) -> Iterator[str]:
        part = item["content"][0]
        if self._text is None:
            yield from self._open_message()
        if rest := part["text"][len(self._text or "") :]:
            yield from self.text(rest)
        place = self._place
        yield self._frame("response.output_text.done", **place, text=part["text"], logprobs=[])
        yield self._frame("response.content_part.done", **place, part=part)
        yield self._frame("response.output_item.done", output_index=0, item=item)

    def _call(self, index: int, item: Item) -> Iterator[str]:
        place = {"item_id": item["id"], "output_index": index}
        begun = item | {"arguments": "", "status": "in_progress"}
        name = "response.function_call_arguments"
        yield self._frame("response.output_item.added", output_index=index, item=begun)
        yield self._frame(f"{name}.delta", **place, delta=item["arguments"])
        yield self._frame(f"{name}.done", **place, arguments=item["arguments"], name=item["name"])
        yield self._frame("response.output_item.done", output_index=index, item=item)

    def _frame(self, kind: str, **fields: Any) -> str:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return frame(event, event=kind)

    def failed(self, response: dict[str, Any]) -> str:
        """The frame of a response that broke off."""
        return self._frame("response.failed", response=response)
