"""Attention of one token over the tokens kept from the last refresh."""

from longmem.ops.recycled_attention.fast import attend_fast as attend_recycled
from longmem.ops.recycled_attention.naive import attend_naive

__all__ = ["attend_naive", "attend_recycled"]
