"""How closed blocks are written: one codec per file, chosen by `MemoryConfig.codec`.

Pure functions of tensors. The values are those of one layer's consecutive tokens, a group; every
row of what is written can be read back alone, given the group's key scales.
"""

from __future__ import annotations

from longmem.codec.base import Codec, Payload
from longmem.codec.bf16 import BF16
from longmem.codec.int4 import INT4
from longmem.codec.int8 import INT8
from longmem.codec.packing import Packed, Packing

__all__ = ["Codec", "Packed", "Packing", "Payload", "get_codec"]

_CODECS: dict[str, Codec] = {"bf16": BF16(), "int8": INT8(), "int4": INT4()}


def get_codec(name: str) -> Codec | None:
    """The codec of a name of `MemoryConfig.codec`; None for "exact", which writes values as they are."""
    return None if name == "exact" else _CODECS[name]
