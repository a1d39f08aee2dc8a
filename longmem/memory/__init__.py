"""The memory a decoder reads from: initial tokens, semantic blocks, local window."""

from longmem.memory.forward_pass import ForwardPass
from longmem.memory.gates import Gates
from longmem.memory.reading import AttentionCall, Choice, Decide, Reading, ReadSpan
from longmem.memory.session_memory import Exported, Mark, SessionMemory
from longmem.memory.spec import LayerSpec
from longmem.ops.scratch import Scratch

__all__ = [
    "AttentionCall",
    "Choice",
    "Decide",
    "Exported",
    "ForwardPass",
    "Gates",
    "LayerSpec",
    "Mark",
    "ReadSpan",
    "Reading",
    "Scratch",
    "SessionMemory",
]
