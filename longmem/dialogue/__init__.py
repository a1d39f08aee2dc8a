"""One contract for everything that talks to sessions from outside.

Callers send the new messages, or the whole list once more; `Dialogue` finds out what of it a
session holds already, reads the rest, and answers. Every server and adapter stands on it.
"""

from longmem.dialogue.async_exchange import AsyncExchange
from longmem.dialogue.dialogue import Dialogue
from longmem.dialogue.events import Event, Outcome, TextDelta, ToolCallsReady
from longmem.dialogue.exchange import Exchange
from longmem.dialogue.ids import fork_name, public_id, session_id
from longmem.dialogue.message import Message, message_turn, turn_message
from longmem.dialogue.past import Past
from longmem.dialogue.reconcile import Plan, reconcile
from longmem.dialogue.request import Request
from longmem.errors import DivergedError, SystemChangedError
from longmem.tools import ToolCall

__all__ = [
    "AsyncExchange",
    "Dialogue",
    "DivergedError",
    "Event",
    "Exchange",
    "Message",
    "Outcome",
    "Past",
    "Plan",
    "Request",
    "SystemChangedError",
    "TextDelta",
    "ToolCall",
    "ToolCallsReady",
    "fork_name",
    "message_turn",
    "public_id",
    "reconcile",
    "session_id",
    "turn_message",
]
