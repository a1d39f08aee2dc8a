"""The parts of `longmem bench gpu` that need no model: aims, budget, trust, lengths, what is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from longmem import ConfigError
from longmem.bench.gpu.aims import K64, K128, K512, M1, Aim, aims, fastest_dense
from longmem.bench.gpu.budget import Budget
from longmem.bench.gpu.clock import each_ms, median_ms
from longmem.bench.gpu.decode import StepTimes
from longmem.bench.gpu.dense import DenseTime
from longmem.bench.gpu.figures import nothing_measured, with_earlier
from longmem.bench.gpu.history import Stretch, host_bytes_per_token, reaches
from longmem.bench.gpu.ingest import IngestRun
from longmem.bench.gpu.memory import MemorySample
from longmem.bench.gpu.model import tokenizer_of
from longmem.bench.gpu.plan import Plan, in_short, lengths_of
from longmem.bench.gpu.rates import Rates
from longmem.bench.gpu.sessions import SessionsTime
from longmem.bench.gpu.shapes import EIGHT_B, TINY_SHAPE, shape_of
from longmem.bench.gpu.trust import READING, STEPPING, Checked, Trust
from longmem.bench.gpu.walk import Walked
from longmem.memory import LayerSpec

CPU = torch.device("cpu")


def steps(history: int, recycled: float, refresh: float, stride: int = 8) -> StepTimes:
    return StepTimes(history, "exact", False, stride, (recycled,) * 3, (refresh,), None, {})


def sample(history: int, peak: int) -> MemorySample:
    return MemorySample(history, "exact", peak - 5, peak, peak - 1, 10, 5, 2, 100, False)


def sessions(number: int, ms: float) -> SessionsTime:
    return SessionsTime(number, 8192, 8, (ms,), (2 * ms,))


def checked(op: str, error: float | None) -> Checked:
    return Checked(op, "case", "", 64, "bfloat16", error)


def all_right_but(op: str, error: float | None) -> Trust:
    """Every op compared, one of them with this outcome."""
    found = {name: checked(name, 0.9) for name in (*READING, *STEPPING)}
    return Trust([*(found | {op: checked(op, error)}).values()])


def by_name(found: list[Aim]) -> dict[str, Aim]:
    return {aim.what.split(",")[0]: aim for aim in found}


def test_aims_are_ratios_of_what_was_measured() -> None:
    walked = Walked(
        steps=[steps(K128, 5.0, 9.0), steps(K512, 5.0, 9.0), steps(M1, 6.0, 15.0)],
        dense=[DenseTime(K128, "a", (11.0,)), DenseTime(K512, "a", (40.0,)),
               DenseTime(K512, "b", (22.0,)), DenseTime(K512, "c", (), "out of memory")],
        samples=[sample(K64, 1000), sample(M1, 1100)],
    )  # fmt: skip
    ingest = IngestRun(1024, {}, {"exact": [Stretch(0, 10, 1), Stretch(10, 20, 2)]},
                       {"exact": [9e9, 6e9]}, 1e14)  # fmt: skip
    many = replace(sessions(16, 6.0), refresh_ms=(24.0,))
    found = by_name(aims(walked, ingest, [sessions(1, 4.0), many], 4.0))
    assert found["recycled step at 1M"].measured == pytest.approx(1.5)
    assert found["recycled step at 1M"].reached is False
    assert found["refresh step at 1M"].measured == pytest.approx(2.5)
    assert found["reading"].measured == pytest.approx(5000 * 6e9 / 1e14)
    assert found["reading"].reached is False
    assert found["peak of device memory at 1M"].measured == pytest.approx(0.1)
    assert found["peak of device memory at 1M"].reached is True
    assert found["steps at 512K"].measured == pytest.approx(22 / 5.5)
    assert found["steps at 128K"].measured == pytest.approx(2.0)
    assert found["16 sessions"].measured == pytest.approx(16 * (8 + 7 * 4) / (24 + 7 * 6))
    assert found["16 sessions"].reached is True


def test_the_aims_take_compiled_steps_where_they_are_faster() -> None:
    compiled = replace(steps(M1, 4.0, 9.0), compiled=True)
    for both in ([compiled, steps(M1, 5.0, 9.0)], [steps(M1, 5.0, 9.0), compiled]):
        found = by_name(aims(Walked(steps=both), None, [], 2.0))
        assert found["recycled step at 1M"].measured == pytest.approx(2.0)


def test_steps_that_torch_compiled_are_not_compared_with_transformers_which_are_not() -> None:
    compiled = replace(steps(K128, 4.0, 4.0), compiled=True)
    walked = Walked(steps=[compiled, steps(K128, 5.0, 5.0)], dense=[DenseTime(K128, "a", (10.0,))])
    assert by_name(aims(walked, None, [], None))["steps at 128K"].measured == pytest.approx(2.0)
    walked.steps.pop()
    assert by_name(aims(walked, None, [], None))["steps at 128K"].measured is None


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    for aim in aims(Walked(), None, [sessions(16, 5.0)], None):
        assert (aim.measured, aim.reached) == (None, None)


def test_a_bound_that_is_met_exactly_is_reached() -> None:
    assert Aim("x", 1.4, True, 1.4).reached and Aim("x", 8.0, False, 8.0).reached
    assert not Aim("x", 1.4, True, 1.41).reached and not Aim("x", 8.0, False, 7.9).reached


def test_a_step_of_a_reply_has_its_share_of_the_look_up() -> None:
    assert steps(1, 4.0, 12.0, stride=8).step == pytest.approx(5.0)
    assert sessions(4, 2.0).rate == pytest.approx(1000 * 4 * 8 / (4.0 + 7 * 2.0))


def test_ways_that_did_not_run_are_not_the_fastest() -> None:
    times = [DenseTime(8, "static", (), "no room"), DenseTime(8, "dynamic", (3.0, 1.0, 2.0))]
    assert fastest_dense(times, 8) == 2.0 and fastest_dense(times[:1], 8) is None


def test_the_budget_says_what_it_left_out() -> None:
    now = [0.0]
    budget = Budget(100, lambda: now[0])
    now[0] = 60.0
    assert budget.allows("a", 40) and not budget.allows("b", 41)
    now[0] = 130.0
    assert budget.spent == 130 and not budget.allows("c", 1)
    assert [each["what"] for each in budget.left_out] == ["b", "c"]
    assert budget.left_out[1]["why"] == "0 s were left, and it takes about 1 s"


@pytest.mark.parametrize("error", [1.5, math.nan, math.inf, None])
def test_an_op_that_failed_takes_with_it_what_is_built_on_it(error: float | None) -> None:
    trust = all_right_but("step_attention", error)
    assert not trust.right and trust.op_is_wrong("step_attention")
    assert not trust.op_is_wrong("block_gather")
    assert "step_attention" in (trust.against("decode") or "")
    assert trust.against("ingest") is None and trust.against("memory") is None
    rows = trust.row()["ops"]
    assert isinstance(rows, list) and [row["right"] for row in rows].count(False) == 1


def test_an_op_nothing_is_built_on_refuses_itself_alone() -> None:
    trust = all_right_but("compressive", 2.0)
    assert trust.op_is_wrong("compressive") and trust.against("decode") is None
    assert not trust.right


def test_an_op_that_nobody_knows_refuses_everything() -> None:
    trust = all_right_but("unknown", None)
    assert all(trust.against(name) for name in ("ingest", "memory", "decode", "sessions"))


def test_what_is_built_on_an_op_that_was_not_compared_is_not_told() -> None:
    trust = Trust([checked(op, 0.1) for op in READING])
    assert trust.right and trust.against("ingest") is None
    assert "not compared" in (trust.against("decode") or "")


def test_steps_that_differ_refuse_decoding_and_not_reading() -> None:
    trust = replace(all_right_but("compressive", 0.5), steps=[checked("steps", 3.0)])
    assert trust.against("decode") and trust.against("sessions")
    assert trust.against("ingest") is None and not trust.right


def test_lengths_are_read_as_they_are_written() -> None:
    assert lengths_of(["64K", "8k", "1M", "500", "8K"]) == (500, 8192, 65536, 1048576)
    assert [in_short(n) for n in lengths_of(["1M", "512K", "500"])] == ["500", "512K", "1M"]
    for text in ("", "K", "8G", "-1K", "0", "1.5K"):
        with pytest.raises(ConfigError, match="is no length"):
            lengths_of([text])


@pytest.mark.parametrize(
    "change", [{"sections": ("decode", "colour")}, {"codec": "int3"}, {"ops": ("colour",)}]
)
def test_a_plan_refuses_what_it_does_not_know(change: dict[str, Any]) -> None:
    given = {"sections": ("decode",), "codec": "auto"} | change
    with pytest.raises(ConfigError):
        Plan(TINY_SHAPE, CPU, (128,), sessions=(1,), **given)
    with pytest.raises(ConfigError, match="no shape"):
        shape_of("9b")


def layer() -> LayerSpec:
    return LayerSpec(0, 32, 8, 128, None, None, 1.0, torch.bfloat16, CPU)


def test_each_length_takes_the_widest_codec_that_fits() -> None:
    exact, int8 = (host_bytes_per_token([layer()], name) for name in ("exact", "int8"))
    assert exact == 4096 and 2048 < int8 < 0.54 * exact
    found, too_long = reaches([layer()], [8, 64, 110, 200, 1024], 64 * exact, "auto")
    expected = {"exact": (8, 64), "int8": (110,), "int4": (200,)}
    assert {reach.codec: reach.lengths for reach in found} == expected
    assert too_long == [1024]
    found, too_long = reaches([layer()], [8, 128], 64 * exact, "exact")
    assert [reach.lengths for reach in found] == [(8,)] and too_long == [128]


def test_a_million_tokens_of_the_8b_shape_take_66_gib_in_eight_bits() -> None:
    spec = layer()
    gib = 32 * host_bytes_per_token([spec], "int8") * M1 / 2**30
    assert 64 < gib < 68
    assert 32 * host_bytes_per_token([spec], "exact") * K512 / 2**30 == 64


def test_the_floor_is_the_slowest_of_bytes_operations_and_link() -> None:
    rates = Rates(1e12, 1e15, 5e10, 1, 1, "bfloat16")
    assert rates.floor_ms(1e9, 1e9) == pytest.approx(1.0)
    assert rates.floor_ms(1, 5e12) == pytest.approx(5.0)
    assert rates.floor_ms(1e9, 1e9, linked=1e9) == pytest.approx(20.0)


def test_the_clock_times_each_call_by_itself() -> None:
    calls = [0]

    def call() -> None:
        calls[0] += 1

    assert len(each_ms([call] * 5, CPU)) == 5 and min(each_ms([call], CPU)) >= 0
    median_ms(call, CPU, times=3, warm=2)
    assert calls[0] == 11


def test_the_large_model_has_an_id_for_every_row() -> None:
    tokenizer = tokenizer_of(EIGHT_B)
    assert len(tokenizer) == EIGHT_B.model["vocab_size"]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert "Hi" in text


def written(**changes: Any) -> dict[str, Any]:
    """A file's figures, as far as `with_earlier` reads them."""
    row = {"what": "a", "measured": None, "asked": 1}
    base = {
        "measured": True, "commit": "abc", "hardware": {"name": "H200"}, "shape": {"name": "8b"},
        "command": "first", "sections": {}, "aims": [row], "refused": {},
    }  # fmt: skip
    return base | changes


def test_sections_of_an_earlier_run_are_kept_with_their_command() -> None:
    earlier = written(sections={"decode": {"rows": 1}, "sessions": {"rows": 2}},
                      aims=[{"what": "a", "measured": 3.0, "asked": 1}])  # fmt: skip
    now = written(command="second", sections={"decode": {"rows": 9}})
    found = with_earlier(now, earlier)
    assert found["sections"]["decode"] == {"rows": 9}
    assert found["sections"]["sessions"] == {"command": "first", "rows": 2}
    assert found["aims"][0]["measured"] == 3.0
    refused = with_earlier(now | {"refused": {"sessions": "wrong"}}, earlier)
    assert "sessions" not in refused["sections"]


@pytest.mark.parametrize(
    "other", [{"commit": "x"}, {"hardware": {}}, {"shape": {}}, {"measured": False}]
)
def test_figures_of_another_commit_or_machine_are_not_kept(other: dict[str, Any]) -> None:
    earlier = written(sections={"sessions": {"rows": 2}}) | other
    assert with_earlier(written(), earlier)["sections"] == {}


def test_without_a_gpu_the_file_says_that_nothing_was_measured() -> None:
    found = nothing_measured()
    assert found["measured"] is False and "No GPU was at hand" in found["why"]
    assert found["to_measure"].startswith("longmem bench gpu")
    assert len(found["aims"]) == 7 and all(aim["measured"] is None for aim in found["aims"])


def test_steps_without_a_graph_are_told_and_make_the_run_wrong() -> None:
    steps = [checked("steps", 0.5), replace(checked("graphs", None), why="refused: no room")]
    trust = Trust(all_right_but("step_attention", 0.5).ops, steps)
    assert not trust.right and trust.against("decode") is None
