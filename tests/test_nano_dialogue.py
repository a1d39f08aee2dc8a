"""The dialogue generator: repeatable, one key per fact, reserved pools disjoint."""

from __future__ import annotations

import itertools
import random

import pytest
from nano_training.batches import Encoder, Row, make_batch
from nano_training.lines import Line, training_lines
from nano_training.task_lines import SHARES, TaskLines
from tokenizers import Tokenizer

from longmem import nano
from longmem.nano import phrases
from longmem.nano.dialogue import Dialogue, make_dialogue
from longmem.nano.pool import KINDS, Key, Pool


def count(text: str) -> int:
    """A stand-in for a tokenizer."""
    return len(text) // 4 + 5


def dialogue(seed: int = 0, tokens: int = 20_000, unseen: bool = False) -> Dialogue:
    return make_dialogue(seed, tokens, count, unseen=unseen)


def first_lines(seed: int, amount: int = 60) -> list[Line]:
    return list(itertools.islice(training_lines(random.Random(seed)), amount))


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(Tokenizer.from_file(str(nano.path() / "tokenizer.json")))


def task_lines(task: str, rows: int = 20, amount: int = 40) -> list[list[Line]]:
    group = TaskLines(random.Random(0), task)
    return [list(itertools.islice(group.row(), amount)) for _ in range(rows)]


def test_the_same_seed_gives_the_same_dialogue_and_another_seed_another() -> None:
    assert dialogue(3) == dialogue(3)
    assert dialogue(3) != dialogue(4)


@pytest.mark.parametrize("tokens", [1_000, 20_000])
def test_length_and_number_of_facts_are_as_asked(tokens: int) -> None:
    made = dialogue(1, tokens)
    length = sum(count(text) for _, text in made.turns)
    assert tokens <= length < tokens + 300
    assert len(made.questions) == round(tokens * 2 / 1000)


def test_users_and_assistants_take_turns() -> None:
    assert {role for role, _ in dialogue().turns[0::2]} == {"user"}
    assert {role for role, _ in dialogue().turns[1::2]} == {"assistant"}


@pytest.mark.parametrize("unseen", [False, True])
def test_the_fact_turn_holds_the_answer_and_no_later_turn_tells_another_value_for_its_key(
    unseen: bool,
) -> None:
    made = dialogue(5, unseen=unseen)
    for question in made.questions:
        assert question.answer in made.turns[question.fact_turn][1]
        assert made.turns[question.fact_turn][0] == "user"


def test_a_share_of_the_facts_is_updated() -> None:
    questions = [question for seed in range(5) for question in dialogue(seed).questions]
    share = sum(question.updated for question in questions) / len(questions)
    assert 0.1 < share < 0.3
    assert not any(
        question.updated for question in make_dialogue(0, 20_000, count, updated_share=0).questions
    )


def test_every_kind_of_fact_occurs() -> None:
    assert {question.kind for question in dialogue(tokens=100_000).questions} == set(KINDS)


def test_keys_are_unique_in_a_dialogue() -> None:
    questions = dialogue(tokens=200_000).questions
    lines = [question.text for question in questions]
    owners = Key("Kelmar's", "Kelmar", "gym code", "code"), Key("my", "", "gym code", "code")
    assert len(set(lines)) == len(lines)
    assert [key.generic for key in owners] == [False, True]


def test_the_assistant_never_tells_a_value() -> None:
    made = dialogue(2)
    replies = " ".join(text for role, text in made.turns if role == "assistant")
    assert not any(
        question.answer in replies
        for question in made.questions
        if question.kind in ("code", "passkey", "title")
    )


def test_an_updated_fact_is_answered_with_the_value_told_last() -> None:
    asked = 0
    for seed in range(30):
        last: dict[int, str] = {}
        for line in first_lines(seed):
            if line.act.endswith("fact"):
                last[line.key] = line.value
            if line.act in ("answer", "generic"):
                asked += 1
                assert line.text == f"{last[line.key]}."
    assert asked > 100


def test_training_asks_each_fact_once() -> None:
    for seed in range(30):
        asked = [line.key for line in first_lines(seed) if line.act in ("answer", "generic")]
        assert len(set(asked)) == len(asked)


def test_reserved_words_and_sentences_are_never_drawn_for_training() -> None:
    for words in (phrases.GIVEN_NAMES, phrases.CITIES, phrases.ADJECTIVES, phrases.NOUNS):
        assert not set(phrases.part(words, False)) & set(phrases.part(words, True))
        assert set(phrases.part(words, False)) | set(phrases.part(words, True)) == set(words)
    assert not set(phrases.syllables(False)) & set(phrases.syllables(True))
    for seen, unseen in (phrases.FACTS, phrases.UPDATES, phrases.QUESTIONS):
        assert not set(seen) & set(unseen)


@pytest.mark.parametrize("kind", KINDS)
def test_reserved_values_are_never_drawn_for_training(kind: str) -> None:
    seen, unseen = Pool(random.Random(0)), Pool(random.Random(0), unseen=True)
    assert not {seen.value(kind) for _ in range(500)} & {unseen.value(kind) for _ in range(500)}


def test_a_million_tokens_are_made_quickly_enough_to_stream() -> None:
    assert sum(count(text) for _, text in dialogue(tokens=1_000_000).turns) >= 1_000_000


@pytest.mark.parametrize("task", SHARES)
def test_a_training_reply_holds_all_values_told_for_its_keys(task: str) -> None:
    for lines in task_lines(task):
        told: dict[int, Line] = {}
        for line in lines:
            if line.act == "fact":
                told[line.key] = line
            if line.act == "answer":
                assert line.text == ", ".join(told[key].value for key, _ in line.values) + "."
                assert all(value in told[key].text for key, value in line.values)


@pytest.mark.parametrize("task", SHARES)
def test_no_value_is_told_twice_in_rows_that_see_each_other(task: str) -> None:
    values = [line.value for row in task_lines(task) for line in row if line.act == "fact"]
    assert len(values) > 100
    assert len(set(values)) == len(values)


@pytest.mark.parametrize("task", SHARES)
def test_a_query_before_a_value_token_points_at_the_turn_that_has_it(
    task: str, encoder: Encoder
) -> None:
    checked = 0
    for lines in task_lines(task, rows=40):
        row = Row(encoder, lines, 288)
        for position, fact, _, first, _ in row.queries:
            assert row.lines[fact].act == "fact"
            if not first:
                checked += 1
                assert encoder.tokenizer.decode([row.ids[position + 1]]) in row.lines[fact].text
    assert checked > 50


@pytest.mark.parametrize("task", SHARES)
def test_value_tokens_of_a_row_spell_the_reply(task: str, encoder: Encoder) -> None:
    spelled = 0
    for lines in task_lines(task):
        row = Row(encoder, lines, 2048)
        for index, line in enumerate(row.lines):
            if line.act == "answer":
                ids = [i for i, of in zip(row.ids[1:], row.answer, strict=False) if of == index]
                spelled += 1
                assert encoder.tokenizer.decode(ids).removesuffix(".") + "." == line.text
    assert spelled > 50


@pytest.mark.parametrize("task_share", [0.0, 0.6, 1.0])
def test_a_batch_is_full_and_every_asked_turn_stays_visible(
    task_share: float, encoder: Encoder
) -> None:
    batch = make_batch(random.Random(0), encoder, 288, task_share)
    assert batch["ids"].shape == (24, 289)
    asked = batch["query_weight"] > 0
    assert asked.sum() > 50
    for row, fact in zip(batch["query_row"][asked], batch["query_fact"][asked], strict=True):
        assert batch["keep"][row][batch["line"][row] == fact].all()
