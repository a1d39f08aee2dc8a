"""Tell a model's reasoning from its answer, in one piece or while it streams.

Reasoning is a block in `tags` at the very start of a reply (white space before it is fine), as
Qwen3, DeepSeek-R1 and their kin write it. A tag further on is part of the answer, so that a reply
*about* ``<think>`` is shown whole.
"""

from __future__ import annotations

from longmem.lookahead import held_back

Tags = tuple[str, str]
THINK_TAGS: Tags = ("<think>", "</think>")


class ReasoningFilter:
    """Passes the answer through, keeps the reasoning apart.

    Args:
        tags: opening and closing tag.
        opened: the reply begins inside the block; its opening tag stood in the generation prompt.
    """

    def __init__(self, tags: Tags = THINK_TAGS, *, opened: bool = False) -> None:
        self._open, self._close = tags
        self._state = "reasoning" if opened else "start"
        self._buffer = ""
        self._reasoning: list[str] = []

    @property
    def reasoning(self) -> str:
        """The reasoning so far, without white space around it."""
        return "".join(self._reasoning).strip()

    def push(self, piece: str) -> str:
        """Take the next characters of the reply; return those known to belong to the answer."""
        if self._state == "answer":
            return piece
        self._buffer += piece
        return self._advance()

    def finish(self) -> str:
        """End of the reply: what is still held back goes to the side it stands on."""
        rest, self._buffer = self._buffer, ""
        if self._state == "reasoning":
            self._reasoning.append(rest)
            return ""
        return rest if self._state != "after" else ""

    def _advance(self) -> str:
        if self._state == "start" and not self._enter():
            return self._release() if self._state == "answer" else ""
        if self._state == "reasoning":
            self._collect()
        if self._state == "after":
            self._buffer = self._buffer.lstrip()
            if self._buffer:
                self._state = "answer"
                return self._release()
        return ""

    def _enter(self) -> bool:
        """Decide whether the reply opens with the tag; undecided while it is only a part of it."""
        head = self._buffer.lstrip()
        if head.startswith(self._open):
            self._state, self._buffer = "reasoning", head[len(self._open) :]
            return True
        if not self._open.startswith(head):
            self._state = "answer"
        return False

    def _collect(self) -> None:
        inside, tag, after = self._buffer.partition(self._close)
        if tag:
            self._reasoning.append(inside)
            self._state, self._buffer = "after", after
            return
        keep = len(inside) - held_back(inside, (self._close,))
        self._reasoning.append(inside[:keep])
        self._buffer = inside[keep:]

    def _release(self) -> str:
        answer, self._buffer = self._buffer, ""
        return answer


def split_reasoning(text: str, tags: Tags = THINK_TAGS, *, opened: bool = False) -> tuple[str, str]:
    """Split a whole reply into (reasoning, answer).

    Args:
        text: the reply as decoded.
        tags: opening and closing tag.
        opened: the reply begins inside the block, without an opening tag of its own.

    Returns:
        The reasoning, stripped, and the answer, without the white space between the two. A block
        that is never closed (the reply ran into its length limit) is reasoning to the end.
    """
    stream = ReasoningFilter(tags, opened=opened)
    answer = stream.push(text) + stream.finish()
    return stream.reasoning, answer
