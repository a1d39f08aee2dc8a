"""Render a conversation turn by turn in a model's own chat format, each turn as token ids.

Only the new turn is rendered and tokenised, whatever the length of the history. `ChatFormat` takes
the pieces around a turn from the tokenizer's chat template (`longmem.chat.pieces`), encodes turns
in place (`longmem.chat.encode`) and proves once that they add up to the template's own ids
(`longmem.chat.check`). A tokenizer without a template gets `PLAIN_TEMPLATE`.

The stream of one exchange, for ChatML, and who makes which part::

    <|im_start|>user⏎Hi<|im_end|>⏎  <|im_start|>assistant⏎  Hello<|im_end|>  ⏎
    turn_ids("user", "Hi", ...)     reply_header_ids()      sampled          close_ids(its last id)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

from longmem.chat.check import disagreements
from longmem.chat.encode import ANCHOR, TurnEncoder
from longmem.chat.gaps import REWRITES, first_prefix
from longmem.chat.native_tools import NativeTools
from longmem.chat.pieces import Opening, Pieces, derive_pieces
from longmem.chat.reasoning import THINK_TAGS, Tags, split_reasoning
from longmem.chat.template import PLAIN_TEMPLATE, ChatTemplate
from longmem.chat.tool_form import ToolForm, find_tools
from longmem.chat.tool_gaps import fill
from longmem.chat.turn_text import check_characters, check_role, validate_text
from longmem.errors import ChatFormatError
from longmem.tools.calls import ToolCall
from longmem.tools.formats import FORMATS
from longmem.tools.prompt import hermes_system_prompt
from longmem.types import ROLES

__all__ = ["PLAIN_TEMPLATE", "ChatFormat", "split_reasoning", "validate_text"]


class ChatFormat:
    """One tokenizer's chat format. Make it with `from_tokenizer`.

    Attributes:
        roles: roles that `turn_ids` accepts.
        eos_ids: token ids that end a reply.
        stop_strings: strings that end a reply, for formats without an end token.
        keep_reasoning: whether reasoning stays in memory (see `rewrites_reply`).
        tags: what encloses reasoning in a reply.
        takes_tools: the template itself tells of tools, in a way longmem knows; otherwise a system
            turn tells of them, as `longmem.tools.hermes_system_prompt` writes it.
        tool_format: how calls of tools are written, for `longmem.tools.parse_tool_calls`; None if
            there is no way to tell the model of tools.
        tool_markers: markup of calls that belongs to a reply's text although it may be special
            tokens.
        call_form: the text of one call, with slots for its parts (`longmem.tools.grammar`).
        opens_reasoning: the generation prompt ends inside a reasoning block (DeepSeek-R1).
        reply_lead: white space the template puts between header and reply; a model samples it as
            part of its reply, but it belongs to no reply's text.
        identity: hash of template and pieces, for the fingerprint. What comes before the first turn
            is left out: some templates write today's date there.
    """

    def __init__(
        self,
        pieces: Pieces,
        encoder: TurnEncoder,
        template: ChatTemplate,
        *,
        eos_id: int | None = None,
        keep_reasoning: bool = True,
        tags: Tags = THINK_TAGS,
        tools: ToolForm | None = None,
    ) -> None:
        self.identity = _hash(template, pieces)
        pieces = tools.pieces if tools else pieces
        self._tools, self.takes_tools = tools, bool(tools and tools.native)
        self.tool_format = tools.format if tools else None
        self.tool_markers = FORMATS[tools.format].tokens if tools else ()
        self.call_form = tools.call if tools else ""
        self._allowed = (*(tags if keep_reasoning else ()), *self.tool_markers)
        self._pieces, self._encoder, self._template = pieces, encoder, template
        self.keep_reasoning, self.tags = keep_reasoning, tags
        self.roles = tuple(role for role in ROLES if role not in pieces.refused)
        closing, change = pieces.closings["assistant"], pieces.openings["assistant", "user"].prefix
        self._closing_ids = encoder.encode(closing, ANCHOR)
        ends = encoder.control_ids(closing + change)[:1]
        self.eos_ids = frozenset(ends if eos_id is None else [*ends, eos_id])
        stop = (closing + change).rstrip()
        self.stop_strings = () if ends or not stop else (stop,)
        header, opening = pieces.headers["user"], pieces.openings["user", "assistant"].prefix
        self.opens_reasoning = header.rstrip().endswith(tags[0])
        lead = opening[len(header) :] if opening.startswith(header) else ""
        self.reply_lead = lead if lead.isspace() else ""

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        keep_reasoning: bool = True,
        *,
        tags: Tags = THINK_TAGS,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> Self:
        """Derive the format from a Hugging Face tokenizer and prove it against the template.

        Args:
            tokenizer: with a ``chat_template``, or without one for the plain format.
            keep_reasoning: True: memory keeps a reply as it was sampled, reasoning included.
                False: memory holds what the template writes for a past reply, without reasoning.
            tags: opening and closing tag of reasoning.
            template_kwargs: variables for the template, such as ``{"enable_thinking": False}``.

        Raises:
            ChatFormatError: user and assistant turns do not add up to the template's own ids.
        """
        template = ChatTemplate(tokenizer, template_kwargs or {})
        encoder = TurnEncoder(tokenizer)
        pieces = derive_pieces(template.render, encoder.added, tokenizer.eos_token, encoder.stable)
        encoder.guard(template.source, pieces.texts())

        eos_id = tokenizer.eos_token_id
        if not template.plain:
            probe = cls(pieces, encoder, template, eos_id=eos_id, tags=tags)
            pieces = pieces.without(disagreements(probe, template, encoder, pieces.rendered))
        make = partial(cls, pieces, encoder, template, eos_id=eos_id, tags=tags)
        tools = find_tools(template, encoder, pieces, make)
        return make(keep_reasoning=keep_reasoning, tools=tools)

    def turn_ids(
        self,
        role: str,
        text: str,
        *,
        previous: str | None,
        extra: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of one whole turn, opening and closing pieces included.

        Args:
            text: of the turn; for an assistant's with calls of tools, see `assistant_text`.
            previous: role of the turn before; None for the first turn, which gets what the template
                puts before everything (a BOS token, a default system prompt).
            extra: `Turn.extra`; an assistant's ``reasoning`` in it is written before the text if
                `keep_reasoning`; a tool's ``tool_call_id`` and ``name`` are written where the
                template wants them; ``tools`` are those below.
            tools: definitions that the first turn tells of, a system turn; its text may be "".

        Raises:
            ChatFormatError: the template has no such role, or not at this place.
            InputError: unknown role, or characters no tokenizer reads (see `validate_text`), or
                something in `tools` is no definition.
        """
        extra = extra or {}
        check_characters(text, role)
        if role == "system" and previous is None and (tools or extra.get("tools")):
            return self._tools_turn(text, tools or extra["tools"])
        opening, closing = self._opening(role, previous), self._pieces.closings[role]
        if role == "assistant":
            text = self._assistant_text(text, extra)
            opening = self._tools.opening(text, previous, opening) if self._tools else opening
        elif role == "tool":
            opening = replace(opening, prefix=fill(opening.prefix, extra))
            closing = fill(closing, extra)
        return self._encoder.encode_turn(
            opening.prefix,
            REWRITES[opening.rewrite](text),
            closing,
            context=self._context(previous),
            allowed=self._allowed if role == "assistant" else (),
        )

    def assistant_text(self, content: str, calls: Sequence[ToolCall] = ()) -> str:
        """The text of an assistant's turn that says `content` and calls tools, for `turn_ids`.

        It is what the template writes: some leave out the content of a turn with calls.

        Raises:
            ChatFormatError: there is no way to tell this model of tools.
            InputError: the template cannot write these calls.
        """
        if not calls:
            return content
        return self._tools_or_refuse().call_text(content, calls)

    def reply_header_ids(self, previous: str = "user") -> list[int]:
        """Ids that ask the model for a reply (the generation prompt), behind a `previous` turn.

        Never empty: the reply's first token is sampled from the logits of the last of them.

        Raises:
            ChatFormatError: the template asks for no reply there.
        """
        header = self._pieces.headers.get(previous)
        if header is None:
            raise ChatFormatError(
                f"this chat template asks for no reply right after {previous!r}; add a user turn"
            )
        return self._encoder.encode(header, self._context(previous))

    def close_ids(self, last_sampled_id: int | None) -> list[int]:
        """Ids to read after a reply, so that the stream equals the template's rendering of it.

        Args:
            last_sampled_id: the reply's last token, itself already read (but see `reads_eos`); None
                for a reply without tokens. If it is the template's own end token, only what follows
                that is left to read; after length, a stop string or a halt the whole closing is.
        """
        if last_sampled_id in self.eos_ids and last_sampled_id in self._closing_ids:
            return self._closing_ids[self._closing_ids.index(last_sampled_id) + 1 :]
        return list(self._closing_ids)

    def reads_eos(self, eos_id: int) -> bool:
        """Whether a sampled end token is the template's own, and so is to be read into memory.

        Another one (Llama-3's ``<|end_of_text|>`` instead of ``<|eot_id|>``) ends the reply, but no
        conversation of the template holds it: read `close_ids` in its place.
        """
        return eos_id in self._closing_ids

    def rewrites_reply(self, reasoning: str) -> bool:
        """Whether memory must hold a reply otherwise than it was sampled.

        If so, roll back to before the reply's header and read ``turn_ids("assistant", text,
        previous=...)`` instead.
        """
        thinks = bool(reasoning) or self.tags[0] in self._pieces.headers["user"]
        return thinks and not self.keep_reasoning

    def validate_text(self, text: str, role: str) -> None:
        """As the function `validate_text`, and check that this format has the role.

        Raises:
            InputError: see the function.
            ChatFormatError: the template cannot render turns of `role`.
        """
        validate_text(text, role)
        self._check_role(role)

    def _check_role(self, role: str) -> None:
        check_role(role)
        if role in self._pieces.refused:
            raise ChatFormatError(
                f"this tokenizer's chat template cannot render {role} turns one by one: "
                f"{self._pieces.refused[role]}. Put the text into a user turn instead."
            )

    def _tools_turn(self, text: str, tools: Sequence[Mapping[str, Any]]) -> list[int]:
        form = self._tools_or_refuse()
        if isinstance(form, NativeTools):
            if text:
                self._check_role("system")
            return form.system_turn(text, tools, self._encoder)
        return self.turn_ids("system", hermes_system_prompt(text, tools), previous=None)

    def _tools_or_refuse(self) -> ToolForm:
        if self._tools is None:
            raise ChatFormatError(
                "this tokenizer's chat template takes no tools, and no system turn that could tell "
                "of them; leave out tools, or give the tokenizer a template with either"
            )
        return self._tools

    def _opening(self, role: str, previous: str | None) -> Opening:
        self._check_role(role)
        found = self._pieces.openings.get((previous, role))
        if found is None:
            place = "as the first" if previous is None else f"right after {previous!r}"
            raise ChatFormatError(f"this chat template takes no {role} turn {place}")
        if previous is None and self._template.dated:
            return Opening(first_prefix(self._template.render, role), found.rewrite)
        return found

    def _assistant_text(self, text: str, extra: Mapping[str, Any] | None) -> str:
        if not self.keep_reasoning:
            return split_reasoning(text, self.tags)[1]
        reasoning = str((extra or {}).get("reasoning") or "")
        return f"{self.tags[0]}\n{reasoning}\n{self.tags[1]}\n\n{text}" if reasoning else text

    def _context(self, previous: str | None) -> str:
        return self._encoder.context(self._pieces.closings[previous]) if previous else ""


def _hash(template: ChatTemplate, pieces: Pieces) -> str:
    later = [[*pair, o.prefix, o.rewrite] for pair, o in pieces.openings.items() if pair[0]]
    parts = [template.source, template.kwargs, sorted(later), pieces.closings, pieces.headers]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
