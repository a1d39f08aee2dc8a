"""LangChain: `ChatLongMem`, a chat model whose conversations live in a store.

pip install 'longmem[langchain]'
"""

try:
    import langchain_core  # noqa: F401  (asked for here, so that its absence gets a plain answer)
except ImportError as error:
    raise ImportError(
        "longmem.adapters.langchain needs langchain-core, which is not installed; "
        "pip install 'longmem[langchain]'"
    ) from error

from longmem.adapters.langchain.chat_model import ChatLongMem

__all__ = ["ChatLongMem"]
