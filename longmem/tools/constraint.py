"""Hold a reply to a grammar while it is sampled, with llguidance.

https://github.com/guidance-ai/llguidance: at each step the tokens that no text of the grammar could
go on with are masked out; where the text is complete and nothing may follow, only an end token is
left.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from longmem.errors import InputError
from longmem.tools.grammar import json_rule, lark

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from torch import Tensor

_TAIL = 32
"""Tokens among which the end of the reasoning is looked for."""
_compiled: WeakKeyDictionary[Any, dict[Any, LLTokenizer]] = WeakKeyDictionary()
_compiling = threading.Lock()


def schema_processor(
    tokenizer: Any,
    schema: Mapping[str, Any] | str,
    n_vocab: int,
    *,
    eos_ids: Collection[int] = (),
    after: str = "",
) -> GrammarProcessor:
    """A logits processor under which a whole reply is JSON that is valid under a schema.

    Args:
        tokenizer: the engine's; a fast one.
        schema: a JSON schema, or "json" for any object.
        n_vocab: rows of the model's logits.
        eos_ids: ids that may end the reply, besides the tokenizer's end token
            (`ChatFormat.eos_ids`).
        after: text in front of which everything is free (``</think>``, where the reply begins
            inside reasoning); "" if nothing is.

    Returns:
        A processor for one reply. If the reply is cut at its length, so is the JSON.

    Raises:
        InputError: the schema is none, or has parts that cannot be enforced.
        ImportError: llguidance is not installed.
    """
    return grammar_processor(tokenizer, lark(json_rule(schema)), n_vocab, eos_ids, after)


def grammar_processor(
    tokenizer: Any, grammar: str, n_vocab: int, eos_ids: Collection[int] = (), after: str = ""
) -> GrammarProcessor:
    """As `schema_processor`, for any grammar in llguidance's Lark dialect."""
    compiled = compiled_tokenizer(tokenizer, n_vocab, eos_ids)
    matcher_of = _llguidance().LLMatcher
    matcher = matcher_of(compiled, matcher_of.grammar_from_lark(grammar), log_level=0)
    if matcher.is_error():
        reason = matcher.get_error().strip().splitlines()
        raise InputError(
            f"replies cannot be held to this JSON schema: {reason[0] if reason else 'unknown'}; "
            "change or leave out the part it names"
        )
    return GrammarProcessor(matcher, tokenizer, after, tuple(compiled.eos_tokens))


def compiled_tokenizer(tokenizer: Any, n_vocab: int, eos_ids: Collection[int] = ()) -> LLTokenizer:
    """llguidance's form of a tokenizer; made once for each (large ones take about a second)."""
    own = tokenizer.eos_token_id
    ends = sorted({*eos_ids, *([own] if own is not None else [])})
    key = (n_vocab, tuple(ends))
    with _compiling:
        known = _compiled.setdefault(tokenizer, {})
        if key not in known:
            known[key] = _compile(tokenizer, n_vocab, ends)
        return known[key]


class GrammarProcessor:
    """Masks the logits of one reply; for `Extensions.logits_processor`.

    Args:
        matcher: the grammar, at its start.
        tokenizer: decodes what comes before `after`.
        after: see `schema_processor`.
        ends: ids that must not end the reply before that.
    """

    def __init__(
        self, matcher: LLMatcher, tokenizer: Any, after: str, ends: tuple[int, ...]
    ) -> None:
        self._matcher, self._tokenizer = matcher, tokenizer
        self._after, self._ends = after, list(ends)
        self._start: int | None = None
        self._seen = 0
        self._open = not after

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Mask what may not come next.

        Args:
            input_ids: ``[1, n]``: ids before the reply, and the reply's so far.
            scores: ``[1, V]``.

        Raises:
            InputError: the schema is too complex to go on with.
        """
        self._take(input_ids)
        if not self._open:
            masked = scores.clone()
            masked[:, self._ends] = float("-inf")
            return masked
        allowed = self._allowed(scores)  # [V]
        return scores.masked_fill(~allowed, float("-inf"))

    def _take(self, input_ids: Tensor) -> None:
        """Tell the grammar what was sampled since the last call."""
        n = int(input_ids.shape[1])
        if self._start is None:
            self._start = self._seen = n
        fresh = input_ids[0, self._seen :].tolist()
        self._seen = n
        if self._open:
            for token in fresh:
                self._matcher.consume_token(token)
        elif fresh:
            tail = input_ids[0, max(self._start, n - _TAIL) :].tolist()
            self._open = self._after in self._tokenizer.decode(tail, skip_special_tokens=False)

    def _allowed(self, scores: Tensor) -> Tensor:
        """Bool ``[V]``, on the device of `scores`."""
        import torch

        bias = self._matcher.compute_logit_bias()
        if self._matcher.is_error():
            raise InputError(
                "a reply could not be held to its JSON schema any further: "
                f"{self._matcher.get_error().strip()}; use a simpler schema"
            )
        allowed = torch.frombuffer(bytearray(bias), dtype=torch.uint8).bool()
        return allowed[: scores.shape[-1]].to(scores.device)


def _compile(tokenizer: Any, n_vocab: int, ends: list[int]) -> LLTokenizer:
    _llguidance()
    from llguidance.hf import from_tokenizer

    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"replies cannot be held to a schema with a {type(tokenizer).__name__}: it is not a fast "
            "tokenizer; load the model's fast one"
        )
    if not ends:
        raise InputError(
            "replies cannot be held to a schema: the tokenizer has no end token that could end them; "
            "set tokenizer.eos_token"
        )
    return from_tokenizer(tokenizer, n_vocab=n_vocab, eos_token=ends)


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(
            "holding replies to a JSON schema needs llguidance: pip install 'longmem[structured]'"
        ) from error
    return llguidance
