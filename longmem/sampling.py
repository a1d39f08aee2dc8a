"""Choose the next token: transformers' own logits processors, stopping criteria, and a seed.

`Sampling` says how; `Sampler` does it. longmem is greedy unless asked otherwise: the same question
to the same memory gets the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from longmem.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """How replies are sampled.

    Args:
        max_new_tokens: longest reply, in tokens.
        temperature: 0 is greedy; 1 the model's own distribution.
        top_k: sample among the k likeliest tokens; None or 0: all.
        top_p: sample among the likeliest tokens that hold this probability mass; None or 1: all.
        min_p: drop tokens less likely than this share of the likeliest one; None or 0: none.
        repetition_penalty: above 1 makes tokens of the local window and the reply less likely.
        seed: seeds the reply's random numbers; None: the session's go on from where they stood.
        stop: strings that end a reply; the text is cut before them.
        eos_token_id: ids that end a reply, in place of the model's and the template's; None: those.

    Raises:
        ConfigError: a value out of range, or one that greedy decoding would ignore.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    eos_token_id: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        limit = self.max_new_tokens
        _require(_is_int(limit, 1), "max_new_tokens", limit, "1 or more")
        heat = self.temperature  # below 1e-4 logits leave what float32 holds
        fits = _in(heat, 0.0, 0.0) or _in(heat, 1e-4, 100.0)
        _require(fits, "temperature", heat, "0, or 0.0001 to 100")
        _require(self.top_k is None or _is_int(self.top_k, 0), "top_k", self.top_k, "0 or more")
        _require(self.top_p is None or _in(self.top_p, 1e-9, 1.0), "top_p", self.top_p, "in (0, 1]")
        _require(self.min_p is None or _in(self.min_p, 0.0, 1.0), "min_p", self.min_p, "0 to 1")
        penalty = self.repetition_penalty
        _require(_in(penalty, 0.01, 100.0), "repetition_penalty", penalty, "0.01 to 100")
        seed_fits = self.seed is None or (_is_int(self.seed, 0) and self.seed < 2**63)
        _require(seed_fits, "seed", self.seed, "0 to 2**63 - 1")
        self._set_stop()
        self._set_eos()
        self._refuse_ignored()

    @property
    def greedy(self) -> bool:
        """Always the likeliest token; no random number is drawn."""
        return self.temperature == 0.0

    @classmethod
    def from_generation_config(cls, config: Any, **changes: Any) -> Self:
        """The settings of a model's ``generation_config``.

        Args:
            config: a transformers `GenerationConfig`; without ``do_sample`` it means greedy.
            changes: fields to set otherwise.
        """
        fields: dict[str, Any] = {}
        if getattr(config, "do_sample", None):
            given = {name: getattr(config, name, None) for name in ("top_k", "top_p", "min_p")}
            temperature = getattr(config, "temperature", None)
            fields = {"temperature": 1.0 if temperature is None else float(temperature), **given}
        for name in ("max_new_tokens", "repetition_penalty"):
            if getattr(config, name, None) is not None:
                fields[name] = getattr(config, name)
        fields["eos_token_id"] = eos_ids_of(config) or None
        _check_names(changes)
        return cls(**(fields | changes))

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated anew.

        Raises:
            ConfigError: there is no such field, or the values cannot work.
        """
        _check_names(changes)
        return replace(self, **changes)

    def _set_stop(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        fits = all(isinstance(string, str) and string for string in stop)
        _require(fits, "stop", self.stop, "strings that are not empty")
        object.__setattr__(self, "stop", stop)

    def _set_eos(self) -> None:
        if self.eos_token_id is None:
            return
        given = self.eos_token_id
        ids = (given,) if isinstance(given, int) else tuple(given)
        _require(all(_is_int(i, 0) for i in ids), "eos_token_id", given, "ids, 0 or more")
        object.__setattr__(self, "eos_token_id", ids)

    def _refuse_ignored(self) -> None:
        filters = {
            "top_k": self.top_k not in (None, 0),
            "top_p": self.top_p not in (None, 1.0),
            "min_p": self.min_p not in (None, 0.0),
        }
        used = [name for name, set_ in filters.items() if set_]
        if self.greedy and used:
            raise ConfigError(
                f"{' and '.join(used)} would be ignored: temperature is 0, which is greedy; "
                "set temperature, for instance to 1.0, or leave the others out"
            )


class Sampler:
    """Picks a reply's tokens one by one, and tells when it is over.

    Args:
        sampling: how.
        generation_config: the model's, for its end tokens; nothing else is taken from it
            (`Sampling.from_generation_config` takes the rest).
        eos_ids: further end tokens, the chat format's. `sampling.eos_token_id` replaces both.
        logits_processor: further processors; they run where `generate` runs them, behind the
            repetition penalty and before temperature and filters.
        stopping_criteria: further criteria, which `done` asks.
    """

    def __init__(
        self,
        sampling: Sampling,
        generation_config: Any = None,
        *,
        eos_ids: Collection[int] = (),
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
    ) -> None:
        self.sampling = sampling
        known = (*eos_ids, *eos_ids_of(generation_config))
        own = sampling.eos_token_id
        self.eos_ids = frozenset(known if own is None else _as_tuple(own))
        self.processors = _processors(sampling, logits_processor)
        self.criteria = StoppingCriteriaList(stopping_criteria or ())

    @property
    def takes_best(self) -> bool:
        """Whether `next` is nothing but the token of the greatest logit."""
        return self.sampling.greedy and not self.processors

    def next(self, context_ids: Tensor, logits: Tensor, generator: torch.Generator) -> int:
        """Sample one token; waits for the device once, for its number.

        Args:
            context_ids: ``[1, n]`` ids the processors see: the local window's and the reply's.
            logits: ``[1, V]`` of the last position, any floating dtype.
            generator: on the device of `logits`; drawn from once unless greedy.

        Raises:
            RuntimeError: what is left of the logits are no probabilities, for instance because a processor
                allows no token at all.
        """
        scores = logits.to(dtype=torch.float32, copy=True)  # [1, V]
        scores = self.processors(context_ids, scores)
        if self.sampling.greedy:
            return int(scores.argmax(dim=-1).item())
        best = _raced(torch.softmax(scores, dim=-1), generator).max(dim=-1)
        token, value = torch.cat((best.indices.double(), best.values.double())).tolist()
        if math.isnan(value):
            raise RuntimeError(
                "no token can be drawn: the processed logits hold nan, or -inf alone"
            )
        return int(token)

    def done(self, context_ids: Tensor, scores: Tensor) -> bool:
        """Whether one of the caller's stopping criteria ends the reply here; False without any.

        End tokens (`eos_ids`) and length are for the caller to compare, as numbers on the host:
        `EosTokenCriteria` and `MaxLengthCriteria` would each synchronise with the device.

        Args:
            context_ids: ``[1, n + 1]`` as for `next`, the token just sampled included.
            scores: ``[1, V]`` logits it was sampled from.
        """
        if not self.criteria:
            return False
        return bool(torch.as_tensor(self.criteria(context_ids, (scores,))).any())


def _raced(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """``[1, V]`` the largest of which is drawn with its probability: each divided by an exponential
    random number. So does `torch.multinomial`, bit for bit, which on a GPU waits twice beforehand to see
    whether these are probabilities."""
    return probabilities / torch.empty_like(probabilities).exponential_(1, generator=generator)


def eos_ids_of(generation_config: Any) -> tuple[int, ...]:
    """The end tokens a model's ``generation_config`` lists; empty if it names none (or is None)."""
    ids = getattr(generation_config, "eos_token_id", None)
    return () if ids is None else _as_tuple(ids)


def new_generator(device: torch.device | str, seed: int | None = None) -> torch.Generator:
    """A source of random numbers on `device`; seeded by the operating system without `seed`."""
    generator = torch.Generator(device=device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def save_generator(generator: torch.Generator) -> Tensor:
    """The whole state, uint8 ``[n]`` on the CPU; n depends on the device type."""
    return generator.get_state()


def load_generator(device: torch.device | str, state: Tensor) -> torch.Generator:
    """The generator that goes on bit for bit where `save_generator` left off.

    Raises:
        ConfigError: the state is that of another type of device, or none.
    """
    generator = torch.Generator(device=device)
    try:
        generator.set_state(state.cpu())
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"this state of the random numbers ({state.numel()} bytes) does not fit a generator on "
            f"{device}: it comes from another type of device; give a seed to start anew"
        ) from error
    return generator


def _processors(sampling: Sampling, further: LogitsProcessorList | None) -> LogitsProcessorList:
    """In the order of `generate`: penalty, the caller's, temperature, top-k, top-p, min-p."""
    chain = LogitsProcessorList()
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    chain.extend(further or ())
    if sampling.greedy:
        return chain
    if sampling.temperature != 1.0:
        chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p is not None and sampling.top_p < 1.0:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain


def _check_names(options: Collection[str]) -> None:
    known = Sampling.__dataclass_fields__
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(
            f"there is no sampling option {' or '.join(map(repr, unknown))}; there are "
            f"{', '.join(known)}"
        )


def _as_tuple(ids: Any) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else tuple(int(i) for i in ids)


def _is_int(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _in(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _require(fits: bool, name: str, value: object, allowed: str) -> None:
    if not fits:
        raise ConfigError(f"{name} is {value!r}; it must be {allowed}")
