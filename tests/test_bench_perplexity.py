"""Perplexity through a memory: nothing leaks from the future, and figures are paired."""

from __future__ import annotations

import json
from math import exp, sqrt
from pathlib import Path

import pytest
import torch
from command import Command

from longmem import ConfigError, Engine, MemoryConfig
from longmem.bench.methods import in_budget, methods, parse_changes
from longmem.bench.perplexity import (
    TextScore,
    difference,
    losses,
    measure,
    read_text,
    score_text,
)
from longmem.first_tokens import first_tokens
from longmem.gate_file import save_gates, segment_of
from longmem.memory import Gates

TEXT = " ".join(f"On day {i} Anna saw {i * 7 % 13} ships and Ben {i % 5} gulls." for i in range(60))


def half_open(engine: Engine, folder: Path) -> str:
    """The change that opens the gates of the preset infini half, in a file of this model."""
    shape = (len(engine.info.layers), engine.info.layers[0].heads)
    settings = in_budget(engine.config, "infini")
    assert settings.compressive is not None
    path, half = folder / "gates.safetensors", Gates(torch.full(shape, 0.5))
    save_gates(path, half, engine.model, settings.compressive, segment_of(settings))
    return f"infini:compressive.gates={path}"


@pytest.fixture(scope="module")
def ids(engine: Engine) -> list[int]:
    return read_text(engine, TEXT, 400)


@pytest.mark.parametrize("preset", ["longmem", "infllm", "em-llm", "infini", "full"])
def test_no_token_is_predicted_with_anything_after_it(
    engine: Engine, ids: list[int], preset: str, tmp_path: Path
) -> None:
    changes = [half_open(engine, tmp_path)] if preset == "infini" else []
    (method,) = methods(engine.config, [preset], parse_changes(changes))
    under = Engine(engine.model, engine.tokenizer, method.config)
    other = [*ids[:310], *reversed(ids[310:])]  # in the middle of a span
    one, two = (torch.cat(list(losses(under, text, 32))) for text in (ids, other))
    assert torch.equal(one[:310], two[:310])
    assert not torch.equal(one[310:], two[310:])


def test_blocks_are_chosen_by_earlier_queries_and_matter(engine: Engine, ids: list[int]) -> None:
    window = Engine(engine.model, engine.tokenizer, engine.config.replace(topk=0))
    one, two = (torch.cat(list(losses(each, ids, 32))) for each in (engine, window))
    assert torch.allclose(one[:64], two[:64], atol=1e-5)  # nothing has left the window
    assert (one[200:] - two[200:]).abs().max() > 0.01


def test_within_the_window_the_loss_is_that_of_dense_attention(engine: Engine) -> None:
    ids = read_text(engine, TEXT, 200)
    wide = Engine(engine.model, engine.tokenizer, MemoryConfig(n_local=256, block_size=32))
    spans, whole = (torch.cat(list(losses(wide, ids, size))) for size in (32, 200))
    assert torch.allclose(spans, whole, atol=1e-4)


def test_tokens_are_scored_from_where_it_is_said(engine: Engine, ids: list[int]) -> None:
    every = torch.cat(list(losses(engine, ids, 32)))
    score = score_text(engine, ids, 100, 32)
    assert score.nats == pytest.approx(every[100:].tolist(), abs=1e-5)
    assert [len(span) for span in score.spans] == [28, *[32] * 8, 16]
    assert score.perplexity == pytest.approx(exp(every[100:].mean().item()), rel=1e-4)


def test_all_memories_are_read_in_spans_that_each_of_them_can_read(
    engine: Engine, ids: list[int]
) -> None:
    compared = methods(engine.config, ["streaming-llm", "em-llm"])
    scores = measure(engine, compared, ids, 64, 512)
    lengths = [[len(span) for span in score.spans] for score in scores.values()]
    assert lengths[0] == lengths[1] and max(lengths[0]) <= engine.config.n_local


def test_a_difference_counts_spans_as_its_units() -> None:
    first = TextScore([[1.0, 2.0], [3.0, 5.0]], 0.0)
    second = TextScore([[1.0, 1.0], [2.0, 2.0]], 0.0)
    apart = difference(first, second)
    assert apart.nats == 1.25
    assert apart.margin == pytest.approx(1.96 * sqrt(4.5) * sqrt(2) / 4)  # residuals -1.5 and 1.5
    assert difference(first, first).margin == 0.0


def test_too_short_a_text_is_refused(engine: Engine, ids: list[int]) -> None:
    with pytest.raises(ConfigError, match="fewer than 9,999"):
        read_text(engine, TEXT, 9_999)
    with pytest.raises(ConfigError, match="nothing to score from token 400 on in 400 tokens"):
        score_text(engine, ids, 400, 32)


def test_the_command_compares_memories_on_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    longmem = Command(monkeypatch, capsys)
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    done = longmem("bench", "perplexity", "--file", str(text), "--tokens", "300", "--json")
    assert done.code == 0, done.err
    assert "204 tokens from 96 on" in done.out
    first, second = json.loads(done.out.splitlines()[-1])["rows"]
    assert (first["preset"], second["preset"]) == ("streaming-llm", "longmem")
    assert second["difference"] == pytest.approx(
        second["nats_per_token"] - first["nats_per_token"], abs=1e-9
    )
    assert longmem("bench", "perplexity", "--file", str(tmp_path / "none.txt")).code == 2


def test_a_text_that_is_not_utf_8_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"caf\xe9")
    done = Command(monkeypatch, capsys)("bench", "perplexity", "--file", str(text))
    assert done.code == 1 and "is not UTF-8" in done.err and done.err.count("\n") == 1


class Counting:
    """A tokenizer that notes how many characters it was given."""

    def __init__(self, engine: Engine) -> None:
        self.own, self.most = engine.tokenizer, 0

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        self.most = max(self.most, len(text))
        return self.own(text, **options)  # type: ignore[no-any-return]


@pytest.mark.parametrize("text", [TEXT * 200, "x" * 500 + " " * 90_000, TEXT[:50]])
def test_the_first_tokens_are_those_of_the_whole_text_and_the_rest_is_not_read(
    engine: Engine, text: str
) -> None:
    counting = Counting(engine)
    found = first_tokens(counting, text, 100)
    assert found == engine.tokenizer(text, verbose=False)["input_ids"][:100]
    assert counting.most < 50_000 or len(found) < 100 or text.endswith(" ")
