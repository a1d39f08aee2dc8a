"""How a request wants its reply decoded, as `Sampling` says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from longmem.adapters.server.errors import ApiError
from longmem.adapters.server.settings import Settings

if TYPE_CHECKING:
    from longmem.sampling import Sampling

_NOTHING = 1e-4
"""A temperature or top_p below this means greedy; logits divided by much less overflow."""


class SamplingFields(BaseModel):
    """What both dialects call by the same names. Without temperature and top_p decoding is greedy."""

    model_config = ConfigDict(strict=True)

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


def to_sampling(
    settings: Settings,
    fields: SamplingFields,
    max_tokens: int | None,
    stop: Sequence[str] = (),
    param: str = "max_tokens",
) -> Sampling:
    """The `Sampling` of a request.

    Args:
        settings: holds the limits of replies.
        fields: of the request.
        max_tokens: longest reply; None: the server's default.
        stop: strings that end the reply.
        param: what the dialect calls `max_tokens`.

    Raises:
        ApiError: more tokens than the server allows.
        ConfigError: values that cannot work together.
    """
    from longmem.sampling import Sampling

    temperature = _temperature(fields)
    filters = temperature > 0
    return Sampling(
        max_new_tokens=_limit(settings, max_tokens, param),
        temperature=temperature,
        top_p=fields.top_p if filters else None,
        top_k=_top_k(fields.top_k) if filters else None,
        min_p=fields.min_p if filters else None,
        repetition_penalty=fields.repetition_penalty or 1.0,
        seed=None if fields.seed is None else fields.seed % 2**63,
        stop=tuple(stop),
    )


def _limit(settings: Settings, asked: int | None, param: str) -> int:
    if asked is None:
        return min(settings.default_tokens, settings.max_tokens)
    if asked > settings.max_tokens:
        raise ApiError(
            400,
            "max_tokens_too_large",
            f"{param} is {asked:,}; this server allows {settings.max_tokens:,} at most",
            param,
        )
    return asked


def _temperature(fields: SamplingFields) -> float:
    """Greedy, unless a temperature is given, or a top_p that would be without effect."""
    if fields.top_p is not None and fields.top_p < _NOTHING:
        return 0.0  # only the likeliest token is left
    if fields.temperature is not None:
        return fields.temperature if fields.temperature >= _NOTHING else 0.0
    return 1.0 if fields.top_p is not None and fields.top_p < 1 else 0.0


def _top_k(given: int | None) -> int | None:
    return None if given == -1 else given
