"""Attention over initial tokens, looked-up blocks, pending tokens and local window."""

from longmem.ops.working_set_attention.attended import Attended, MassOf
from longmem.ops.working_set_attention.blocked import attend_blocked as attend
from longmem.ops.working_set_attention.naive import attend_naive

__all__ = ["Attended", "MassOf", "attend", "attend_naive"]
