"""What is measured and tuned on a GPU, run in the interpreter at small sizes."""

from __future__ import annotations

import json
import math
import sys
from contextlib import ExitStack

import pytest
import torch

from longmem import ConfigError
from longmem.bench.kernels.case import Case
from longmem.bench.kernels.cases import MAKERS, cases
from longmem.bench.kernels.cases.working_set_attention import launched
from longmem.bench.kernels.drawing import apart
from longmem.bench.kernels.exploring import explore, neighbours
from longmem.bench.kernels.found import kernel_ops
from longmem.bench.kernels.size import TARGET, TINY
from longmem.bench.kernels.tune import pin, relative_cost, tune
from longmem.ops.kernels import DIMS, Launch, launch_of
from longmem.ops.kernels.configs import as_json, launches, tried

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
COARSE = {
    ("step_attention", "attend"): Launch({"PROGRAMS": 6, "BLOCK_N": 32}),
    ("compressive", "walk"): Launch({"BLOCK_R": 64, "BLOCK_T": 32, "BLOCK_F": 64, "BLOCK_N": 64}),
}
"""Few and large tiles: the interpreter pays by the operation."""


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """Kernels serve here, too, and where they are interpreted in few programs."""
    with ExitStack() as stack:
        if DEVICE.type == "cpu":
            monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
            for (op, kernel), how in COARSE.items():
                stack.enter_context(tried(op, kernel, how))
        yield


def test_every_pinned_kernel_of_every_op_is_launched_by_a_case():
    met = {op: set() for op in kernel_ops()}
    for case in cases(64, torch.float16, DEVICE, TINY):
        met[case.op] |= set(case.kernels)
        assert case.bytes > case.linked >= 0 and case.flops >= 0 and case.dim == 64
    for tokens in (8, 128):  # keys are split where there are many, as there are at full size
        met["working_set_attention"] |= set(launched(TARGET, tokens, None, None, 128, DEVICE))
    assert met == {op: set(launches(op)) for op in kernel_ops()}


@pytest.mark.parametrize("op", sorted(MAKERS))
def test_the_cases_of_an_op_are_right_and_can_be_run_again(op):
    for case in cases(64, torch.bfloat16, DEVICE, TINY, [op]):
        assert case.op == op
        assert case.error() <= 1, case.name
        case.run()


@pytest.mark.parametrize("op", sorted(set(MAKERS) - {"compressive"}))
def test_kernels_that_write_nothing_are_not_taken_for_right(op, monkeypatch):
    for case in cases(64, torch.bfloat16, DEVICE, TINY, [op]):
        assert case.right
        with monkeypatch.context() as patch:
            for name, module in list(sys.modules.items()):
                if name.startswith(f"longmem.ops.{op}.") and hasattr(module, "launch"):
                    patch.setattr(module, "launch", lambda *args, **meta: None)
            try:
                assert not case.right, case.name
            except IndexError:  # a block's number that was never written
                assert op == "block_scoring"


def test_a_wrong_result_is_seen():
    expected = torch.tensor([1.0, -4.0])
    assert apart(expected.clone(), expected, 0.01) == 0
    assert apart(torch.tensor([1.1, -4.0]), expected, 0.01) == pytest.approx(2.5)
    assert apart(torch.tensor([math.nan, -4.0]), expected, 0.01) == math.inf
    wrong = case_of(lambda: float("nan"))
    assert not wrong.right


def case_of(error, run=lambda: None) -> Case:
    return Case("compressive", "made up", ("fold",), "", 128, 1, 0, run, error)


def test_the_search_walks_to_the_cheapest_launch_and_stays_where_nothing_is_gained():
    def cost(how: Launch) -> float:
        tile, warps = how.blocks["TILE"], how.num_warps
        return 1 + abs(math.log2(tile / 128)) + abs(math.log2(warps / 8)) + 0.001 * how.num_stages

    best, least = explore(Launch({"TILE": 32}, 4, 2), cost)
    assert (best.blocks["TILE"], best.num_warps, best.num_stages) == (128, 8, 2)
    assert least == cost(best)
    assert explore(best, lambda how: 0.99 if how != best else 1.0)[0] == best


def test_neighbours_differ_in_one_thing_each():
    how = Launch({"A": 16, "B": 1}, 1, 1, registers=128)
    found = list(neighbours(how))
    assert len(found) == 5 and how not in found
    assert all(each.registers == 128 for each in found)


def test_a_launch_that_fails_or_is_wrong_costs_more_than_any_other():
    times = iter([4.0, 2.0])

    def error() -> float:
        tile = launch_of("compressive", "fold", 128).blocks["BLOCK_T"]
        if tile == 1:
            raise RuntimeError("too small")
        return 2.0 if tile == 2 else 0.5

    cost = relative_cost("compressive", "fold", [case_of(error)], lambda case: next(times))
    assert cost(Launch({"BLOCK_T": 32})) == 1 and cost(Launch({"BLOCK_T": 64})) == 0.5
    assert cost(Launch({"BLOCK_T": 1})) == math.inf == cost(Launch({"BLOCK_T": 2}))


def test_pinning_changes_one_head_dimension_of_one_kernel(tmp_path):
    how = Launch({"BLOCK_T": 64, "BLOCK_F": 16, "BLOCK_N": 16}, 8, 3)
    pin("compressive", "fold", 96, how, tmp_path)
    was = json.loads(as_json(launches("compressive")))
    now = json.loads((tmp_path / "launches.json").read_text())
    assert now["fold"]["96"]["num_warps"] == 8 and now["fold"]["96"]["blocks"] == dict(how.blocks)
    assert sorted(map(int, now["fold"])) == sorted(DIMS)
    del now["fold"]["96"], was["fold"]["96"]
    assert now == was


def test_files_that_cannot_be_written_are_named_before_anything_is_tuned(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("longmem.bench.kernels.tune.os.access", lambda place, mode: False)
    monkeypatch.setattr("longmem.bench.kernels.tune.cases", lambda *_: pytest.fail("it began"))
    with pytest.raises(ConfigError, match=r"compressive.launches\.json may not be written to"):
        tune(["compressive"], [128], print)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_nothing_is_tuned_without_a_gpu():
    with pytest.raises(ConfigError, match="has none"):
        tune(None, [128], print)


def test_the_target_is_a_million_tokens_of_an_8b_model():
    tokens = TARGET.initial + TARGET.local + TARGET.blocks * TARGET.block_size
    assert 0.99e6 < tokens < 1.01e6
