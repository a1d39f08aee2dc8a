"""`longmem bench recall`: its harness, figures, table, picture and refusals."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from math import comb
from pathlib import Path

import pytest
from command import Command
from conftest import SMALL

from longmem import ConfigError, Engine
from longmem.bench import reference as reference_module
from longmem.bench.evidence import found_share
from longmem.bench.figures import figures
from longmem.bench.methods import methods, parse_changes
from longmem.bench.paired import Pairs, pairs
from longmem.bench.plot import check_plot, draw
from longmem.bench.recall import Plan, RecallRun, measure
from longmem.bench.reference import reference
from longmem.bench.room import check_room, need
from longmem.bench.tasks import CountTokens, Prompt, Question, get_task
from longmem.bench.wilson import Share
from longmem.cli.bench.output import write_json
from longmem.cli.bench.table import tables
from longmem.memory import Choice


@pytest.fixture
def longmem(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capsys)


@pytest.fixture(scope="module")
def nano() -> Engine:
    return Engine.nano()


@dataclass(frozen=True)
class Yesterday:
    """Two facts in a prompt: one long ago, the other the last that was said."""

    name: str = "yesterday"
    reply_tokens: int = 8

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        turns = [("user", f"Day {seed}: nothing of note, {i}.") for i in range(tokens // 16)]
        at = len(turns) // 3
        turns.insert(at, ("user", "The locker code of Anna is 4711."))
        turns.append(("user", "The locker code of Ben is 1234."))
        ask = "What is the locker code of {}?"
        early = Question(ask.format("Anna"), ("4711",), (at,), 0.33, "early")
        late = Question(ask.format("Ben"), ("1234",), (len(turns) - 1,), 0.99, "late")
        return Prompt(turns, [early, late])

    def score(self, question: Question, reply: str) -> float:
        return float(question.answers[0] in reply)


@pytest.fixture(scope="module")
def plan(nano: Engine) -> Plan:
    compared = methods(nano.config, ["longmem", "infllm", "streaming-llm"])
    return Plan([Yesterday()], [500], [0, 1], compared)


@pytest.fixture(scope="module")
def run(nano: Engine, plan: Plan) -> RecallRun:
    return measure(nano, plan)


def test_every_memory_is_told_and_asked_the_same(run: RecallRun) -> None:
    longmem, _, window = run.cells
    asked = [[answer.question for answer in cell.answers] for cell in run.cells]
    assert asked[0] == asked[1] == asked[2] and len(asked[0]) == 4
    assert len({tuple(cost.tokens for cost in cell.costs) for cell in run.cells}) == 1
    assert longmem.score.hits == 4
    assert window.score.hits == 2  # only what is in its window


def test_only_what_had_to_be_looked_up_counts_for_block_recall(run: RecallRun) -> None:
    longmem, _, window = run.cells
    assert longmem.found is not None and longmem.found.total == 2 and longmem.found.value == 1.0
    assert window.found is None


def test_the_figures_are_json_with_a_row_per_memory(run: RecallRun, plan: Plan) -> None:
    found = json.loads(json.dumps(figures(run, plan)))
    first, _, last = found["rows"]
    assert [row["preset"] for row in found["rows"]] == ["longmem", "infllm", "streaming-llm"]
    assert first["recall"] == 1.0 and first["recall_interval"] == pytest.approx(
        [0.5101, 1], abs=1e-4
    )
    assert last["by_label"]["early"]["value"] == 0.0 and last["by_label"]["late"]["value"] == 1.0
    assert set(first["by_depth"]) == {"0.3", "0.9"}
    assert first["ms_per_token"] > 0 and first["read_tokens_per_s"] > 0
    assert first["bytes_host"] > 0 == last["bytes_host"]
    assert found["settings"]["infllm"]["scorer"] == "representative"
    (versus,) = [
        p for p in found["pairs"] if (p["first"], p["second"]) == ("longmem", last["preset"])
    ]
    assert (versus["both"], versus["only_first"], versus["only_second"]) == (2, 2, 0)


def test_the_picture_shows_every_memory(run: RecallRun, plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "new" / "plot.svg"
    draw(run, plan, "nano", path)
    text = path.read_text("utf-8")
    assert "<svg" in text
    for name in ("longmem", "infllm", "streaming-llm", "yesterday, nano: by depth"):
        assert f"<!-- {name} -->" in text


def test_a_picture_that_could_not_be_written_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"end the name in \.png"):
        check_plot(Path("plot.txt"))


def test_a_picture_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longmem.bench.plot.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'longmem\[plot\]'"):
        check_plot(Path("plot.png"))


def test_a_session_on_disk_recalls_the_same_and_leaves_nothing(
    nano: Engine, plan: Plan, run: RecallRun, tmp_path: Path
) -> None:
    one = replace(plan, methods=plan.methods[:1], seeds=[0], folder=tmp_path / "stores")
    (cell,) = measure(nano, one).cells
    assert [a.reply for a in cell.answers] == [a.reply for a in run.cells[0].answers[:2]]
    assert cell.costs[0].bytes_disk > 0
    assert list((tmp_path / "stores").iterdir()) == []


def test_at_most_so_many_questions_are_asked_per_prompt(nano: Engine, plan: Plan) -> None:
    one = replace(plan, methods=plan.methods[2:], lengths=[200], questions=1)
    assert len(measure(nano, one).cells[0].answers) == 2


@dataclass(frozen=True)
class Impossible(Yesterday):
    """A task whose answers were never told."""

    name: str = "impossible"

    def score(self, question: Question, reply: str) -> float:
        return 0.0


@dataclass(frozen=True)
class Endless(Yesterday):
    """A task that is as long whatever is asked for."""

    name: str = "endless"

    def make(self, seed: int, tokens: int, count_tokens: CountTokens) -> Prompt:
        return super().make(seed, 2_000, count_tokens)


def test_a_task_the_model_cannot_do_by_itself_is_not_blamed_on_memories(
    nano: Engine, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "QUESTIONS", 2)
    both = replace(
        plan, tasks=[Impossible(), Yesterday()], training_tokens=256, seeds=[0], lengths=[200]
    )
    run = measure(nano, both)
    assert [run.able("impossible"), run.able("yesterday")] == [False, True]
    assert {cell.task for cell in run.cells} == {"yesterday"}
    alone = replace(both, tasks=[Impossible()], methods=plan.methods[2:], anyway=True)
    assert len(measure(nano, alone).cells) == 1


def test_the_model_by_itself_sees_all_of_a_prompt_that_fits(
    nano: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "QUESTIONS", 4)
    found = reference(nano, get_task("conversation"), 256)
    assert found.share is not None and found.share.total >= 4 and 200 < found.tokens < 400
    assert found.able
    longest = reference(nano, get_task("conversation"), nano.info.max_positions)
    assert longest.share is not None and 700 < longest.tokens < nano.info.max_positions
    too_long = reference(nano, Endless(), 256)
    assert too_long.share is None and too_long.able is None


def test_a_task_that_does_not_fit_is_asked_with_as_many_pairs_as_do(
    nano: Engine, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module, "QUESTIONS", 2)
    found = reference(nano, get_task("kv_140"), 256)
    assert found.share is not None and found.fewer and found.task == "kv_140"
    assert 400 < found.tokens <= nano.info.max_positions
    window = replace(plan, tasks=[get_task("kv_75")], lengths=[300], seeds=[0], questions=1)
    run = measure(nano, replace(window, methods=plan.methods[2:], training_tokens=256, anyway=True))
    (table,) = tables(run, window)
    told = run.cells[0].costs[0].tokens
    assert table.title == f"kv_75, 300 tokens asked for, {told:,} told" and told > 1_000
    assert "with as many keys as fit" in str(table.caption)
    assert figures(run, window)["references"][0]["fewer"] is True


def test_evidence_counts_as_found_when_a_chosen_block_holds_a_part_of_it(engine: Engine) -> None:
    memory = engine.new_memory()
    memory.table.edges[:] = [4, 16, 32, 48, 64]
    for layer in memory.full_layers:
        layer.closed = 3  # 48 .. 64 is still pending
    ends = [10, 20, 40, 60]  # turn 0 is partly initial tokens, turn 3 partly pending
    chosen = [Choice(2, (0,), (1.0,)), Choice(2, (7,), (1.0,))]  # block 7 was of the reply itself
    assert found_share(chosen, [1], ends, memory) == 1.0
    assert found_share(chosen, [2], ends, memory) == 0.0
    assert found_share(chosen, [0, 1, 2, 3], ends, memory) == 0.5
    assert found_share(chosen, [0, 3], ends, memory) is None


def test_a_history_that_memory_cannot_hold_is_refused_before_anything_is_read(
    nano: Engine, plan: Plan
) -> None:
    read = nano.tokens_read
    with pytest.raises(ConfigError, match=r"preset longmem need about .* GB of memory, and"):
        measure(nano, replace(plan, lengths=[10**12]))
    assert nano.tokens_read == read


def test_a_window_needs_no_room_for_blocks_and_a_store_needs_the_disk(
    nano: Engine, tmp_path: Path
) -> None:
    window = Engine(nano.model, nano.tokenizer, nano.config.replace(topk=0))
    assert need(window, 10**6, False).host < need(nano, 10**6, False).host / 4
    size = sum(spec.bytes_per_token for spec in nano.info.layers)
    lookups = nano.config.lookup_layers
    chosen = [s for s in nano.info.layers if lookups == "all" or s.index in lookups]
    keys = sum(spec.bytes_per_token for spec in chosen) / 2
    rows = keys * nano.config.repr_topk / nano.config.block_size
    assert rows > 0
    assert need(nano, 10**6, True).disk > 1.05 * (size + rows) * 10**6
    assert need(nano, 10**9, True).host < need(nano, 10**9, False).host
    with pytest.raises(ConfigError, match=f"GB of disk at {tmp_path}"):
        small = Engine(nano.model, nano.tokenizer, nano.config.replace(topk=0, repr_topk=1))
        _without_memory_limit(small, tmp_path)


def _without_memory_limit(engine: Engine, folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("longmem.bench.room.free_memory", lambda: None)
        check_room(engine, "preset streaming-llm", 10**12, folder / "store")


def test_the_estimate_is_near_what_a_session_takes(nano: Engine, run: RecallRun) -> None:
    cost = run.cells[0].costs[0]
    assert need(nano, cost.tokens, False).host == pytest.approx(cost.bytes_host, rel=0.4)


def test_paired_answers_are_counted_and_tested_exactly() -> None:
    counts = pairs([True] * 9 + [False], [True] * 3 + [False] * 6 + [True])
    assert counts == Pairs(both=3, only_first=6, only_second=1, neither=0)
    assert counts.p == pytest.approx(2 * (comb(7, 0) + comb(7, 1)) / 2**7)
    assert pairs([True, False], [True, False]).p == 1.0
    with pytest.raises(ValueError):
        pairs([True], [])


def test_a_share_of_fractions_has_an_interval_too() -> None:
    assert Share(0.5, 1).interval == pytest.approx((0.0546, 0.9454), abs=1e-4)
    assert str(Share(2.5, 10)).startswith("2.5/10 = 25.0%")


def test_the_command_prints_a_table_and_writes_figures_and_a_picture(
    longmem: Command, tmp_path: Path
) -> None:
    out, plot = tmp_path / "out.json", tmp_path / "plot.png"
    done = longmem(
        "bench", "recall", "--task", "passkey", "--task", "conversation", "--tokens", "200,300",
        "--seeds", "1", "--questions", "2", "--training-tokens", "0", "--presets",
        "streaming-llm,longmem", "--set", "longmem:topk=2", "--out", str(out), "--plot", str(plot),
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "passkey, 300 tokens" in done.out and "conversation, 200 tokens" in done.out
    written = json.loads(out.read_text("utf-8"))
    assert written == json.loads(done.out.splitlines()[-1])
    assert written["command"].startswith("longmem bench recall") and written["commit"]
    assert len(written["rows"]) == 8 and written["settings"]["longmem"]["topk"] == 2
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_grid_of_settings_is_one_table(longmem: Command) -> None:
    done = longmem(
        "bench", "recall", "--tokens", "250", "--seeds", "1", "--training-tokens", "0",
        "--vary", "scorer=soft_vote,representative", "--vary", "block_boundaries=fixed,turn",
    )  # fmt: skip
    assert done.code == 0, done.err
    for scorer in ("soft_vote", "representative"):
        for boundaries in ("fixed", "turn"):
            assert f"longmem scorer={scorer} block_boundaries={boundaries}" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "nonsense"), "no task is called 'nonsense'; choose one of: passkey"),
        (("--presets", "nonsense"), "no preset is called 'nonsense'; choose one of longmem"),
        (("--tokens", "999_000_000_000"), "GB are free; take fewer --tokens or leave this preset"),
        (("--task", ","), "--task names no task"),
        (("--out", "pyproject.toml/out.json"), "pyproject.toml is no folder; give another file"),
        (("--plot", "tests"), "tests cannot be written: it is a folder"),
        (("--task", "passkey", "--unseen"), "--unseen is for the tasks conversation and days"),
        (("--plot", "picture.bmp"), "end the name in .png"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_cannot_be_measured_is_one_message(
    longmem: Command, arguments: tuple[str, ...], message: str
) -> None:
    done = longmem("bench", "recall", *arguments)
    assert done.code == 1 and message in done.err and done.err.count("\n") == 1


def test_lengths_are_whole_numbers(longmem: Command) -> None:
    assert longmem("bench", "recall", "--tokens", "many").code == 2
    assert longmem("bench", "recall", "--tokens", "10,0").code == 2


def test_the_small_memory_of_the_tests_is_a_budget_for_all_presets(engine: Engine) -> None:
    window = parse_changes(["infini:compressive=null"])
    compared = methods(SMALL, ["longmem", "infllm", "em-llm", "infini", "recycled", "full"], window)
    run = measure(engine, Plan([Yesterday()], [300], [0], compared, questions=1))
    assert [len(cell.answers) for cell in run.cells] == [1] * 6


def test_figures_that_no_file_takes_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ConfigError, match="the figures are on standard output"):
        write_json({"recall": 0.5}, blocked / "out.json", printed=False)
    assert json.loads(capsys.readouterr().out)["recall"] == 0.5
