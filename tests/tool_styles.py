"""Tokenizers in the style of models that call tools: nano's vocabulary, their control tokens and
their chat templates (tests/chat_templates)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer

from longmem import nano

TEMPLATES = Path(__file__).parent / "chat_templates"
SPECIAL = {  # BOS and EOS first
    "qwen3-tools": "<|endoftext|> <|im_end|> <|im_start|>",
    "hermes-tools": "<|begin_of_text|> <|im_end|> <|im_start|>",
    "llama3.1-tools": "<|begin_of_text|> <|eot_id|> <|eom_id|> <|start_header_id|> "
    "<|end_header_id|> <|python_tag|>",
    "mistral-v0.3-tools": "<s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] "
    "[TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]",
    "mistral-args": "<s> </s> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] "
    "[/AVAILABLE_TOOLS] [TOOL_CALLS] [ARGS] [TOOL_RESULTS] [/TOOL_RESULTS]",
    "zephyr": "<s> </s>",
}
ADDED = {  # one token each, but not flagged special
    "qwen3-tools": "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response>",
    "hermes-tools": "<tool_call> </tool_call>",
}
NATIVE = ("qwen3-tools", "hermes-tools", "llama3.1-tools", "mistral-v0.3-tools", "mistral-args")
"""Styles whose template tells of tools."""


@cache
def styled_tokenizer(style: str) -> Any:
    """Nano's tokenizer in a style of `SPECIAL`; "nano" as it is."""
    built = AutoTokenizer.from_pretrained(nano.path())
    if style == "nano":
        return built
    special = SPECIAL[style].split()
    tokens = [AddedToken(token, special=True, normalized=False) for token in special]
    built.add_tokens(tokens, special_tokens=True)
    built.bos_token, built.eos_token = special[:2]
    added = ADDED.get(style, "").split()
    built.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    built.chat_template = (TEMPLATES / f"{style}.jinja").read_text(encoding="utf-8")
    return built
