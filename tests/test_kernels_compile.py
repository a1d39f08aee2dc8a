"""Every kernel compiled for Hopper, which takes no GPU: registers, shared memory, tensor cores, loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import longmem.ops
from longmem import ConfigError
from longmem.bench.kernels.compile import Compiled, compiled
from longmem.bench.kernels.found import kernel_module, kernel_ops
from longmem.bench.kernels.machine_code import MachineCode, widest_load
from longmem.cli import main
from longmem.ops.kernels import DIMS, interpreted, kernels_serve
from longmem.ops.kernels.configs import as_json, launches

pytest.importorskip("triton")
LARGEST = 227 << 10
"""Bytes of shared memory that a program can have on Hopper."""
MATRICES = {
    "block_scoring": {"fold", "fold_many"},
    "compressive": {"fold", "walk", "mix", "mix_step"},
    "step_attention": {"attend"},
    "working_set_attention": {
        "attend",
        "attend_few",
        "attend_few_split",
        "attend_split",
        "attention_mass",
        "attention_mass_capped",
    },
}
NARROW = {("block_scoring", "estimate")}
"""Reads a row of counts and means in float32, of which few are there."""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> list[dict[str, object]]:
    """What `longmem bench kernels` found at D = 128, in a process that compiles and does not interpret."""
    out = tmp_path_factory.mktemp("kernels") / "found.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    asked = [sys.executable, "-m", "longmem.cli", "bench", "kernels", "--out", str(out)]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    assert out.exists(), done.stderr[-2000:]
    found = json.loads(out.read_text())["forms"]
    assert done.returncode == any(form["faults"] for form in found), done.stderr[-2000:]
    table = done.stdout.splitlines()
    assert max(len(line.rstrip()) for line in table) <= 100, done.stdout
    assert {form["kernel"] for form in found} <= {word for line in table for word in line.split()}
    return found


def named(forms: list[dict[str, object]]) -> list[str]:
    return [f"{each['op']}.{each['kernel']}, {each['variant']}" for each in forms]


def test_every_folder_with_a_kernel_is_found_and_every_pinned_kernel_is_compiled(made):
    folder = Path(longmem.ops.__file__).parent
    assert kernel_ops() == sorted(path.parent.name for path in folder.glob("*/kernel.py"))
    assert {each["op"] for each in made} == set(kernel_ops())
    for op in kernel_ops():
        assert {each["kernel"] for each in made if each["op"] == op} == set(launches(op)), op


def test_nothing_spills(made):
    assert named([each for each in made if each["spilled_bytes"]]) == []


SPILLED = {
    (1, "attend"): 8,
    (1, "attend_few"): 8,
    (1, "attend_few_split"): 64,
    (7, "attend_split"): 104,
    (7, "attend_few_split"): 16,
}
"""By query heads to a KV head and kernel: the most bytes a thread spills under the pinned launches, which
are made for groups of 4 and 8, with Triton 3.6 or 3.9. All others spill none."""
COMPILE_GROUPS = """
import json, torch
from longmem.bench.kernels.compile import compiled
from longmem.ops.working_set_attention.kernel import forms
print(json.dumps([
    (group, form.name, compiled(form).machine.spilled)
    for group in (1, 4, 7, 8) for form in forms(128, torch.bfloat16, group)
    if form.name.startswith("attend_") or form.variant == "D=128 bf16" and form.name == "attend"
    if "mass" not in form.name
]))
"""


def test_other_groups_of_heads_spill_no_more_than_is_said():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    asked = [sys.executable, "-c", COMPILE_GROUPS]
    done = subprocess.run(asked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {(group, name) for group, name, _ in found} >= {
        *SPILLED,
        (8, "attend"),
        (8, "attend_split"),
    }
    over = [each for each in found if each[2] > SPILLED.get(tuple(each[:2]), 0)]
    assert over == []


def test_shared_memory_fits(made):
    assert named([each for each in made if each["shared_bytes"] > LARGEST]) == []


def test_products_of_matrices_run_on_tensor_cores(made):
    products = [each for each in made if each["multiplies_matrices"]]
    assert named([each for each in products if not each["tensor_cores"]]) == []
    for op, kernels in MATRICES.items():
        assert {each["kernel"] for each in products if each["op"] == op} == kernels


def test_rows_are_read_sixteen_bytes_at_a_time(made):
    wide = [each for each in made if (each["op"], each["kernel"]) not in NARROW]
    assert named([each for each in wide if each["load_bytes"] != 16]) == []


def test_every_kernel_has_forms_and_a_launch_at_every_head_dimension():
    for op in kernel_ops():
        assert json.loads(as_json(launches(op))) != {}
        for dim in DIMS:
            for form in kernel_module(op).forms(dim, torch.float16):
                named = {*form.types, *form.constants, *form.how.blocks}
                assert named == set(form.kernel.arg_names), (op, form.name, form.variant)
                assert set(form.aligned) <= set(form.types), (op, form.name, form.variant)


def refused(monkeypatch, capsys, *options: str) -> str:
    """What `longmem bench kernels` says where it will not begin."""
    monkeypatch.setattr(sys, "argv", ["longmem", "bench", "kernels", *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_head_dimensions_without_kernels_are_refused_in_a_sentence(monkeypatch, capsys):
    said = refused(monkeypatch, capsys, "--dims", "64,7")
    assert "no kernels for head dimension 7; they are made for 64, 80" in said


def test_without_triton_the_command_says_that_it_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert "triton, which is not installed" in refused(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("wanted", "said"), [("fast", "auto, off, interpret"), ("interpret", "TRITON_INTERPRET=1")]
)
def test_a_setting_of_kernels_that_cannot_be_is_refused(monkeypatch, wanted, said):
    monkeypatch.setenv("LONGMEM_KERNELS", wanted)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=said):
        kernels_serve(torch.device("cpu"), torch.bfloat16, 128)


@pytest.mark.skipif(not interpreted(), reason="kernels are compiled in this process")
def test_a_process_that_interprets_kernels_says_that_it_cannot_compile_them():
    form = kernel_module("compressive").forms(128, torch.bfloat16)[0]
    with pytest.raises(ConfigError, match="TRITON_INTERPRET"):
        compiled(form)


def test_what_spills_or_does_not_fit_is_a_fault():
    form = kernel_module("compressive").forms(128, torch.bfloat16)[0]
    good = MachineCode(128, 0, 16, True)
    assert Compiled(form, 90, LARGEST, True, good).faults == []
    (small,) = Compiled(form, 89, LARGEST, True, good).faults
    assert "232,448 bytes" in small and "101,376" in small
    (spilled,) = Compiled(form, 90, 0, True, MachineCode(255, 8, 16, True)).faults
    assert spilled.startswith("8 bytes")


@pytest.mark.parametrize(
    ("ptx", "expected"),
    [
        ("ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", 16),
        ("ld.global.L1::evict_last.v2.b16 { %rs1, %rs2 }, [ %rd1 ];", 4),
        ("cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;", 16),
        ("cp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, 0x4;", 4),
        ("st.global.v4.b32 [ %rd1 ], { %r1, %r2, %r3, %r4 };", 0),
    ],
)
def test_the_widest_load_is_read_from_ptx(ptx, expected):
    assert widest_load(f"\t@%p1 {ptx}\n") == expected
