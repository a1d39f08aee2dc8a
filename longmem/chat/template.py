"""A tokenizer's chat template as one function, or the plain format for tokenizers without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longmem.chat.gaps import Message
from longmem.errors import ChatFormatError

PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ message.content | trim + '\\n\\n' }}"
    "{% elif message.role == 'user' %}{{ 'User: ' + message.content | trim + '\\n' }}"
    "{% elif message.role == 'assistant' %}{{ 'Assistant: ' + message.content | trim + '\\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For tokenizers without a template: the system text and an empty line, then "User: ..." and
"Assistant: ..." lines, texts stripped. A reply ends at "\\nUser:" or at the tokenizer's end token.
Nothing keeps a text from containing such a line itself: prefer a model with a chat template."""


class ChatTemplate:
    """What the tokenizer's own template, or the plain one, makes of whole conversations.

    Args:
        tokenizer: a Hugging Face tokenizer.
        kwargs: variables for the template.

    Attributes:
        plain: the tokenizer has no template.
        source: the template's text.
        dated: it may write today's date, so what it renders first must be rendered anew each time.

    Raises:
        ChatFormatError: no tokenizer that renders chats, or several templates and no default.
    """

    def __init__(self, tokenizer: Any, kwargs: Mapping[str, Any]) -> None:
        self._tokenizer, self.kwargs = tokenizer, dict(kwargs)
        self.plain = not getattr(tokenizer, "chat_template", None)
        self.source = _source(tokenizer, PLAIN_TEMPLATE if self.plain else None)
        if self.plain:
            self.kwargs.setdefault("bos_token", _own_bos(tokenizer))
        self.dated = "strftime_now" in self.source

    def render(
        self, messages: list[Message], reply: bool, tools: Sequence[dict[str, Any]] | None = None
    ) -> str:
        """The template's own text for a conversation; `reply` asks for one.

        Args:
            tools: what it is to tell of, in the wrapped form. Llama's templates tell of them in the
                first user turn unless asked otherwise; there, a pinned system turn would not do.
        """
        kwargs = dict(self.kwargs)
        if tools and "tools_in_user_message" in self.source:
            kwargs.setdefault("tools_in_user_message", False)
        return str(
            self._tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=reply,
                **kwargs,
            )
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text, control tokens shown."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _source(tokenizer: Any, template: str | None) -> str:
    try:
        return str(tokenizer.get_chat_template(template))
    except ValueError as error:
        raise ChatFormatError(
            "this tokenizer has several chat templates and none named 'default'; "
            f"set tokenizer.chat_template to one of them ({error})"
        ) from error
    except (AttributeError, NotImplementedError) as error:
        raise ChatFormatError(
            f"a {type(tokenizer).__name__} renders no chat templates; load the model's Hugging "
            "Face tokenizer (for Mistral models: without mistral-common)"
        ) from error


def _own_bos(tokenizer: Any) -> str:
    """The BOS token, if the tokenizer puts one before plain text by itself."""
    ids = tokenizer("x")["input_ids"]
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""
