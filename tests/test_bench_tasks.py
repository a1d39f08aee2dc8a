"""The recall tasks: repeatable, answerable from their evidence, of the length asked for."""

from __future__ import annotations

import random
import re

import pytest

from longmem.bench.tasks import TASKS, Shrinking, get_task, register
from longmem.bench.tasks.conversation import Conversation
from longmem.bench.tasks.draw import distinct, names
from longmem.bench.tasks.key_value import KeyValue
from longmem.bench.tasks.niah import MultiValue
from longmem.bench.tasks.passkey import PassKey
from longmem.bench.tasks.task import Prompt, Question
from longmem.errors import ConfigError


def count(text: str) -> int:
    """A stand-in for a tokenizer."""
    return len(text) // 3 + 5


def made(name: str, seed: int = 0, tokens: int = 12_000) -> Prompt:
    return get_task(name).make(seed, tokens, count)


def begins(prompt: Prompt) -> list[int]:
    """Tokens before each turn, and at last those of all."""
    sums = [0]
    for _, text in prompt.turns:
        sums.append(sums[-1] + count(text))
    return sums


@pytest.mark.parametrize("name", TASKS)
def test_the_same_seed_gives_the_same_prompt_and_another_seed_another(name: str) -> None:
    assert made(name, 3) == made(name, 3)
    assert made(name, 3) != made(name, 4)


@pytest.mark.parametrize("name", TASKS)
def test_every_answer_stands_in_a_user_turn_that_is_its_evidence(name: str) -> None:
    prompt = made(name)
    assert prompt.questions
    for question in prompt.questions:
        told = [prompt.turns[turn] for turn in question.evidence]
        assert all(role == "user" for role, _ in told)
        assert len(told) == len(question.answers)
        for answer, (_, text) in zip(question.answers, told, strict=True):
            assert answer in text


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("tokens", [30_000, 60_000])
def test_prompts_are_about_as_long_as_asked(name: str, tokens: int) -> None:
    assert tokens * 0.97 <= begins(made(name, tokens=tokens))[-1] <= tokens * 1.03


@pytest.mark.parametrize("name", TASKS)
def test_depth_is_the_share_of_tokens_before_the_first_evidence(name: str) -> None:
    prompt = made(name)
    before = begins(prompt)
    for question in prompt.questions:
        first = min(before[turn] for turn in question.evidence)
        assert question.depth == pytest.approx(first / before[-1])


@pytest.mark.parametrize("name", TASKS)
def test_a_reply_of_all_answers_scores_one_and_one_without_them_nothing(name: str) -> None:
    task = get_task(name)
    for question in made(name).questions:
        assert task.score(question, ", ".join(question.answers) + ".") == 1.0
        assert task.score(question, "I do not know.") == 0.0


@pytest.mark.parametrize("name", TASKS)
def test_questions_are_told_apart(name: str) -> None:
    texts = [question.text for question in made(name).questions]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("name", ["passkey", "number_string"])
def test_keys_stand_at_eleven_depths_from_start_to_end(name: str) -> None:
    depths = [question.depth for question in made(name).questions]
    assert depths == pytest.approx([i / 10 for i in range(11)], abs=0.03)


@pytest.mark.parametrize("name", ["passkey", "number_string", "lines"])
def test_only_the_first_number_of_a_reply_counts(name: str) -> None:
    question = Question("?", ("12345",), (0,), 0.0)
    assert get_task(name).score(question, "12345, not 777.") == 1.0
    assert get_task(name).score(question, "777, not 12345.") == 0.0
    assert get_task(name).score(question, "123456.") == 0.0


@pytest.mark.parametrize("name", ["niah_multivalue", "niah_multiquery", "variable_tracking"])
def test_several_values_score_as_the_share_that_was_replied(name: str) -> None:
    question = made(name).questions[0]
    wanted = len(question.answers)
    assert wanted > 1
    assert get_task(name).score(question, f"{question.answers[0]}.") == pytest.approx(1 / wanted)


def test_a_quarter_of_the_multi_key_haystack_is_distractors_of_the_same_form() -> None:
    prompt = made("niah_multikey", tokens=64_000)
    needles = [text for _, text in prompt.turns if text.startswith("One of the special magic")]
    assert sum(map(count, needles)) == pytest.approx(16_000, rel=0.05)
    assert len(prompt.questions) == 20


@pytest.mark.parametrize("pairs", [75, 140])
def test_all_pairs_are_told_whatever_length_is_asked_for(pairs: int) -> None:
    for tokens in (100, 20_000):
        prompt = KeyValue(pairs).make(1, tokens, count)
        told = [text for _, text in prompt.turns if re.fullmatch(r'"[0-9a-f-]{36}": ".*"', text)]
        assert len(told) == pairs
        assert len(prompt.questions) == 20


def test_multi_value_keys_have_their_values_in_different_turns() -> None:
    for question in MultiValue(values=4).make(2, 10_000, count).questions:
        assert len(set(question.evidence)) == len(set(question.answers)) == 4


def test_a_chain_of_variables_is_told_in_order() -> None:
    for question in made("variable_tracking").questions:
        assert list(question.evidence) == sorted(question.evidence)


def test_the_last_value_of_an_updated_fact_is_the_answer() -> None:
    prompt = made("conversation", tokens=60_000)
    updated = [question for question in prompt.questions if question.label == "updated"]
    assert len(updated) >= 10
    for question in updated:
        later = [text for _, text in prompt.turns[question.evidence[0] + 1 :]]
        owner = question.text
        assert not any(question.answers[0] in text for text in later), owner


def test_days_are_opened_by_a_sentence_and_questions_reach_back_to_the_first() -> None:
    prompt = made("days", tokens=30_000)
    mornings = [i for i, (_, text) in enumerate(prompt.turns) if "a new day begins" in text]
    assert len(mornings) == 3
    assert mornings[0] == 0
    asked = [question.evidence[0] for question in prompt.questions]
    for first, last in zip(mornings, [*mornings[1:], len(prompt.turns)], strict=True):
        assert any(first < turn < last for turn in asked)


def test_unseen_words_make_another_conversation() -> None:
    plain, unseen = Conversation(), Conversation(unseen=True)
    assert unseen.name == "conversation_unseen"
    assert plain.make(0, 5_000, count) != unseen.make(0, 5_000, count)


@pytest.mark.parametrize("name", ["niah_multikey", "lines"])
def test_there_are_keys_for_prompts_of_millions_of_tokens(name: str) -> None:
    rng = random.Random(0)
    keys = names(rng, 20_000)
    assert len(set(keys)) == 20_000
    prompt = get_task(name).make(0, 2_000_000, lambda text: 60)
    assert len(prompt.questions) == 20 and len(prompt.turns) > 30_000


def test_keys_are_plain_words_as_long_as_there_are_enough() -> None:
    assert all(re.fullmatch(r"[a-z]+-[a-z]+", key) for key in names(random.Random(1), 1_000))


def test_strings_that_cannot_all_differ_are_an_error_and_no_endless_loop() -> None:
    rng = random.Random(0)
    with pytest.raises(ConfigError, match=r"needs 11 different keys or values, and .* gave 10"):
        distinct(lambda: str(rng.randint(0, 9)), 11)
    assert sorted(distinct(lambda: str(rng.randint(0, 9)), 10)) == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    "name", ["passkey", "number_string", "niah_multivalue", "niah_multiquery", "kv_75", "kv_140"]
)
def test_a_task_of_many_keys_can_be_told_with_fewer_down_to_one(name: str) -> None:
    task, lengths = get_task(name), []
    while isinstance(task, Shrinking):
        prompt = task.make(0, 1, count)  # no room for chatter
        assert prompt.questions
        lengths.append(begins(prompt)[-1])
        smaller = task.fewer()
        if smaller is None:
            break
        task = smaller  # type: ignore[assignment]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < lengths[0] / 5
    assert len(prompt.questions) == 1


def test_an_unknown_task_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="passkey, number_string"):
        get_task("pass_key")


def test_a_task_of_ones_own_is_found_by_its_name() -> None:
    register(PassKey(depths=(0.5,), name="passkey_middle"))
    assert len(made("passkey_middle").questions) == 1
