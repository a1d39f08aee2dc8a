"""Sampling, against transformers' own generate()."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
)

from longmem.errors import ConfigError
from longmem.sampling import (
    Sampler,
    Sampling,
    eos_ids_of,
    load_generator,
    new_generator,
    save_generator,
)

PROMPT = torch.tensor([[3, 14, 15, 9, 26, 5]])


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def decode(model: Any, sampling: Sampling, seed: int = 0, **options: Any) -> list[int]:
    """The reply longmem's sampler picks, the whole context read anew at each step."""
    sampler = Sampler(sampling, model.generation_config, **options)
    generator, ids, reply = new_generator("cpu", seed), PROMPT, []
    while len(reply) < sampling.max_new_tokens:
        logits = model(ids).logits[:, -1]
        reply.append(sampler.next(ids, logits, generator))
        ids = torch.cat([ids, torch.tensor([[reply[-1]]])], dim=1)
        if reply[-1] in sampler.eos_ids or sampler.done(ids, logits):
            break
    return reply


@torch.no_grad()
def generate(model: Any, seed: int = 0, **options: Any) -> list[int]:
    torch.manual_seed(seed)
    return model.generate(PROMPT, use_cache=False, **options)[0, PROMPT.shape[1] :].tolist()


SAMPLED = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 1.3, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.1},
    ],
)
def test_replies_are_those_of_generate_with_the_same_seed(model: Any, asked: Any) -> None:
    ours = decode(model, Sampling(max_new_tokens=14, **asked), seed=5)
    how = SAMPLED | asked if "temperature" in asked else {"do_sample": False} | asked
    assert ours == generate(model, seed=5, max_new_tokens=14, **how)
    assert len(set(ours)) > 1


def test_processors_change_the_logits_as_those_of_generate_do(model: Any) -> None:
    asked = {"temperature": 0.6, "top_k": 12, "top_p": 0.7, "min_p": 0.1, "repetition_penalty": 1.2}
    config = GenerationConfig(do_sample=True, **asked)
    theirs = model._get_logits_processor(config, input_ids_seq_length=PROMPT.shape[1])
    ours = Sampler(Sampling(**asked)).processors
    assert [type(processor) for processor in ours] == [type(processor) for processor in theirs]
    logits = torch.randn(1, 97, generator=new_generator("cpu", 1))
    assert torch.equal(ours(PROMPT, logits.clone()), theirs(PROMPT, logits.clone()))


def test_further_processors_run_before_temperature_and_filters(model: Any) -> None:
    ban = LogitsProcessorList([SuppressTokensLogitsProcessor([1, 2], device="cpu")])
    greedy = decode(model, Sampling(max_new_tokens=1))
    banned = LogitsProcessorList([SuppressTokensLogitsProcessor(greedy, device="cpu")])
    other = decode(model, Sampling(max_new_tokens=1), logits_processor=banned)
    assert other != greedy
    chain = Sampler(Sampling(temperature=0.5, repetition_penalty=2.0), logits_processor=ban)
    names = [type(processor).__name__ for processor in chain.processors]
    penalty, temperature = "RepetitionPenaltyLogitsProcessor", "TemperatureLogitsWarper"
    assert names == [penalty, "SuppressTokensLogitsProcessor", temperature]


def test_further_criteria_end_the_reply_as_in_generate(model: Any) -> None:
    whole = decode(model, Sampling(max_new_tokens=12, repetition_penalty=1.3))
    ends = StoppingCriteriaList(
        [EosTokenCriteria(whole[3]), MaxLengthCriteria(PROMPT.shape[1] + 9)]
    )
    ours = decode(
        model, Sampling(max_new_tokens=12, repetition_penalty=1.3), stopping_criteria=ends
    )
    theirs = generate(
        model,
        max_new_tokens=12,
        do_sample=False,
        repetition_penalty=1.3,
        stopping_criteria=StoppingCriteriaList([EosTokenCriteria(whole[3])]),
    )
    assert ours == theirs == whole[: whole.index(whole[3]) + 1]
    alone = StoppingCriteriaList([MaxLengthCriteria(PROMPT.shape[1] + 9)])
    assert len(decode(model, Sampling(max_new_tokens=12), stopping_criteria=alone)) == 9


def test_end_tokens_come_from_format_and_model_unless_overridden() -> None:
    config = GenerationConfig(eos_token_id=[7, 8])
    assert Sampler(Sampling(), config, eos_ids={1}).eos_ids == {1, 7, 8}
    assert Sampler(Sampling(eos_token_id=5), config, eos_ids={1}).eos_ids == {5}
    assert Sampler(Sampling(eos_token_id=()), config, eos_ids={1}).eos_ids == frozenset()
    assert Sampler(Sampling()).eos_ids == frozenset()
    assert eos_ids_of(GenerationConfig(eos_token_id=2)) == (2,)


def test_sampling_goes_on_bit_for_bit_from_a_saved_state() -> None:
    sampler = Sampler(Sampling(temperature=1.0))
    logits = torch.randn(1, 50, generator=new_generator("cpu", 3))
    first = new_generator("cpu", 11)
    for _ in range(5):
        sampler.next(PROMPT, logits, first)
    second = load_generator("cpu", save_generator(first).clone())
    ahead = [sampler.next(PROMPT, logits, first) for _ in range(30)]
    assert ahead == [sampler.next(PROMPT, logits, second) for _ in range(30)]
    assert len(set(ahead)) > 5


def test_a_state_of_another_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="another type of device"):
        load_generator("cpu", torch.zeros(16, dtype=torch.uint8))


def test_without_a_seed_the_numbers_differ() -> None:
    states = [save_generator(new_generator("cpu")) for _ in range(2)]
    assert not torch.equal(*states)


def test_greedy_draws_no_random_number_and_leaves_the_logits_alone() -> None:
    generator = new_generator("cpu", 1)
    before, logits = save_generator(generator).clone(), torch.randn(1, 20).to(torch.bfloat16)
    copy = logits.clone()
    Sampler(Sampling(repetition_penalty=1.5)).next(PROMPT[:, :1], logits, generator)
    assert torch.equal(before, save_generator(generator)) and torch.equal(copy, logits)


def test_longmem_is_greedy_unless_asked_otherwise() -> None:
    assert Sampling().greedy
    assert Sampling.from_generation_config(GenerationConfig(temperature=0.7, top_p=0.9)).greedy
    assert not Sampling(temperature=0.1).greedy


def test_a_model_s_own_settings_can_be_taken_over() -> None:
    config = GenerationConfig(
        do_sample=True, temperature=0.6, top_k=20, top_p=0.95, eos_token_id=[4, 5]
    )
    taken = Sampling.from_generation_config(config, seed=3)
    expected = Sampling(temperature=0.6, top_k=20, top_p=0.95, eos_token_id=(4, 5), seed=3)
    assert taken == expected
    bare = Sampling.from_generation_config(GenerationConfig(do_sample=True))
    assert bare == Sampling(temperature=1.0)
    limit = GenerationConfig(max_new_tokens=7, repetition_penalty=1.05)
    assert Sampling.from_generation_config(limit) == Sampling(
        max_new_tokens=7, repetition_penalty=1.05
    )


def test_one_stop_string_may_be_given_bare() -> None:
    assert Sampling(stop="END").stop == ("END",)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 or more"),
        ({"max_new_tokens": True}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": 1e-300}, "temperature is 1e-300"),
        ({"repetition_penalty": 1e-5}, "repetition_penalty is 1e-05"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": 1, "top_k": -1}, "top_k"),
        ({"temperature": 1, "top_p": 0.0}, "top_p is 0.0"),
        ({"temperature": 1, "top_p": 1.5}, "top_p"),
        ({"temperature": 1, "min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"stop": ("",)}, "stop"),
        ({"stop": (3,)}, "stop"),
        ({"eos_token_id": -2}, "eos_token_id"),
        ({"top_p": 0.9}, "top_p would be ignored: temperature is 0"),
        ({"top_k": 3, "min_p": 0.1}, "top_k and min_p would be ignored"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_reason(wrong: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**wrong)


def test_settings_that_filter_nothing_are_fine_with_greedy() -> None:
    assert Sampling(top_k=0, top_p=1.0, min_p=0.0).greedy


def test_a_changed_copy_is_validated_too() -> None:
    assert Sampling(seed=1).replace(temperature=0.5) == Sampling(seed=1, temperature=0.5)
    with pytest.raises(ConfigError):
        Sampling(temperature=0.5, top_k=5).replace(temperature=0.0)


def test_an_unknown_option_is_refused_with_the_options_there_are() -> None:
    expected = "no sampling option 'max_tokens'; there are max_new_tokens, temperature"
    with pytest.raises(ConfigError, match=expected):
        Sampling().replace(max_tokens=3)
    with pytest.raises(ConfigError, match=expected):
        Sampling.from_generation_config(None, max_tokens=3)
