"""Chat templates turn by turn: the ids of one new turn, whatever the length of the history."""

from longmem.chat.format import PLAIN_TEMPLATE, ChatFormat
from longmem.chat.reasoning import THINK_TAGS, split_reasoning
from longmem.chat.turn_text import validate_text

__all__ = ["PLAIN_TEMPLATE", "THINK_TAGS", "ChatFormat", "split_reasoning", "validate_text"]
