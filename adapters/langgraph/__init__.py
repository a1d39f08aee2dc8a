"""LangGraph: `LongMemSaver`, checkpoints in the same database as the sessions they belong to.

pip install 'longmem[langgraph]'
"""

try:
    import langgraph.checkpoint.base  # noqa: F401  (so that its absence gets a plain answer)
except ImportError as error:
    raise ImportError(
        "longmem.adapters.langgraph needs langgraph-checkpoint, which is not installed; "
        "pip install 'longmem[langgraph]'"
    ) from error

from longmem.adapters.langgraph.saver import LongMemSaver

__all__ = ["LongMemSaver"]
