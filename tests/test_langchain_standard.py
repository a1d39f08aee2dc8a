"""LangChain's own suites for chat models, on the scripted model and on nano."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from scripted import Scripted, scripted_engine

from longmem import Engine, MemoryConfig
from longmem.adapters.langchain import ChatLongMem
from longmem.stores import InMemoryStore

MEMORY = MemoryConfig(
    n_init=4,
    n_local=512,
    block_size=16,
    block_boundaries="turn",
    topk=4,
    lookup_span=64,
    max_init=1024,
)
CALLS = {
    "magic_function_no_args": ("magic_function_no_args", {}),
    "magic_function": ("magic_function", {"input": 3}),
    "Pirate": ("greeting_generator", {"answer_style": "Pirate"}),
    "San Francisco": ("get_weather", {"location": "San Francisco, CA"}),
    "3 + 4": ("my_adder_tool", {"a": 3, "b": 4}),
    "Hello Group": ("unicode_customer", {"customer_name": "你好啊集团", "description": "技术"}),
    "Hello Corporation": (
        "unicode_customer",
        {"customer_name": "こんにちは株式会社", "description": "日本"},
    ),
    "Hello!": ("magic_function", {"input": 1}),
}
JOKE = json.dumps({"setup": "Why did the cat sit?", "punchline": "It was tired."})


def reply(read: str) -> str:
    """What a sensible model would say to the last message, given the tools it has read of."""
    said = read.rsplit("<|im_start|>", 2)[-2]
    if "joke" in said:
        return JOKE
    for word, (name, arguments) in CALLS.items():
        if word in said and "<tools>" in read and said.startswith("user"):
            call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
            return f"<tool_call>\n{call}\n</tool_call>"
    return "Hello, how are you today?"


@cache
def scripted() -> Scripted:
    """One engine for all tests: every call is a session of its own."""
    return scripted_engine(reply, MEMORY)


@cache
def nano() -> Engine:
    """The bundled model."""
    return Engine.nano()


class TestUnit(ChatModelUnitTests):
    """Construction, tracing parameters, binding."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLongMem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": scripted()}


class TestScripted(ChatModelIntegrationTests):
    """Everything the product claims, with a model that says what tests need to hear."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLongMem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": scripted(), "store": InMemoryStore()}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_anthropic_inputs(self) -> bool:
        return True

    @property
    def supports_model_override(self) -> bool:
        return False  # one model is loaded; another name is refused

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """The second question of a session: the first exchange comes from memory."""
        chat = ChatLongMem(**self.chat_model_params, session="alice")
        chat.invoke([HumanMessage("My locker code is 482913.")])
        if not stream:
            return chat.invoke([HumanMessage("What is it?")])
        full: AIMessageChunk | None = None
        for chunk in chat.stream([HumanMessage("What is it?")]):
            full = chunk if full is None else full + chunk
        assert full is not None and full.usage_metadata is not None
        assert full.usage_metadata["input_token_details"]["cache_read"] > 0
        return full


class TestNano(ChatModelIntegrationTests):
    """What does not depend on how clever the model is, with a model that was really trained."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatLongMem

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": nano(), "max_tokens": 8}

    @property
    def supports_model_override(self) -> bool:
        return False  # as above

    @property
    def has_tool_calling(self) -> bool:
        return False  # it was never shown a tool, and calls none by itself

    @property
    def has_structured_output(self) -> bool:
        return False  # it fits the schema, and then tells no joke but fills its 8 tokens
