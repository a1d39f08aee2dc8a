"""The kernels that attend to a working set with many tokens: against the definition and the torch form."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pytest
import torch
from tiny import attached, new_memory, read
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from longmem import MemoryConfig
from longmem.memory import ReadSpan
from longmem.ops.kernels.configs import Launch, launch_of, tried
from longmem.ops.working_set_attention import Attended, attend, attend_blocked, attend_naive

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
if not GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("kernels need a GPU or Triton's interpreter", allow_module_level=True)
pytest.importorskip("triton")

from longmem.ops.working_set_attention import fast  # noqa: E402

OP = "working_set_attention"
ROUNDED = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Weights and outputs are rounded to the values' type, by half of this share at most each; values are
about 1, up to 4."""
SUMS = 2e-4
"""Logits, weights and sums stay in float32, in another order; a GPU's powers of two are off by 2**-22."""


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch):
    """Kernels serve, on the CPU through the interpreter, and what is not written is NaN."""
    monkeypatch.setenv("LONGMEM_KERNELS", "interpret")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # new tensors are filled with NaN
    yield
    torch.use_deterministic_algorithms(before)


@dataclass(frozen=True)
class Case:
    """Sizes of a call, and how it is made.

    Args:
        heads, kv_heads, dim: H, H_kv and D.
        n_query, n_far, n_keys: T, F and L.
        n_local: window.
        ragged: whether KV heads have other numbers of far keys.
        sinks: whether there are.
        more: further settings of the call.
    """

    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    n_query: int = 65
    n_far: int = 65
    n_keys: int = 200
    n_local: int = 70
    dtype: torch.dtype = torch.bfloat16
    ragged: bool = False
    sinks: bool = False
    more: tuple[tuple[str, Any], ...] = ()

    def rows(self, *shape: int, seed: int, valid: Tensor | None = None) -> Tensor:
        """Rows of a larger buffer that holds NaN before and behind them."""
        n_heads, n, dim = shape
        held = torch.full((n_heads, n + 40, dim), torch.nan)
        held[:, 3 : 3 + n] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        if valid is not None:
            beyond = torch.arange(n) >= valid[:, None]
            held[:, 3 : 3 + n][beyond] = torch.nan
        return held.to(DEVICE, self.dtype)[:, 3 : 3 + n]

    def queries(self, seed: int) -> Tensor:
        """``[H, T, D]`` as a model has them: a view of ``[T, H, D]``."""
        made = torch.randn(
            self.n_query, self.heads, self.dim, generator=torch.Generator().manual_seed(seed)
        )
        return made.to(DEVICE, self.dtype).transpose(0, 1)

    @cached_property
    def lengths(self) -> Tensor:
        return torch.tensor([self.n_far * (2 * i + 1) // 9 for i in range(self.kv_heads)])

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        valid = self.lengths if self.ragged else None
        far = [self.rows(self.kv_heads, self.n_far, self.dim, seed=i, valid=valid) for i in (3, 4)]
        local = [self.rows(self.kv_heads, self.n_keys, self.dim, seed=i) for i in (5, 6, 7)]
        return self.queries(1), self.queries(2), *far, *local

    @cached_property
    def settings(self) -> dict[str, Any]:
        sinks = torch.linspace(-2, 3, self.heads).to(DEVICE, self.dtype) if self.sinks else None
        length = self.lengths.to(DEVICE) if self.ragged else None
        return {
            "n_local": self.n_local,
            "scaling": self.dim**-0.5,
            "sinks": sinks,
            "far_length": length,
            "want_lse": True,
            **dict(self.more),
        }

    def oracle(self, twin: Any) -> Attended:
        """What a twin makes of the same values in float32, with nothing that is not to be read."""
        return twin(*(x.float().nan_to_num(0.0) for x in self.tensors), **self.settings)


def compare(case: Case, got: Attended, wanted: Attended) -> None:
    rounding = ROUNDED[case.dtype]
    assert got.out.dtype == case.dtype
    torch.testing.assert_close(got.out.float(), wanted.out, atol=2 * rounding, rtol=rounding)
    torch.testing.assert_close(got.lse, wanted.lse, atol=SUMS, rtol=SUMS)
    assert (got.mass is None) == (wanted.mass is None)
    if got.mass is not None:
        torch.testing.assert_close(got.mass, wanted.mass, atol=SUMS, rtol=SUMS)


BASE = Case()
CASES = [
    Case(n_query=1, n_far=0, n_keys=1),
    Case(n_query=1, n_far=64, n_keys=300, sinks=True),
    Case(heads=8, kv_heads=1, n_query=1, n_far=1000, n_keys=600, n_local=512, ragged=True),
    Case(heads=2, n_query=63, n_far=63, n_keys=63, n_local=200),
    Case(heads=2, n_query=64, n_far=64, n_keys=129, n_local=1),
    Case(heads=8, kv_heads=1, n_query=65, n_far=130, n_keys=190, n_local=64, ragged=True),
    Case(heads=2, kv_heads=1, n_query=1000, n_far=65, n_keys=1100, n_local=600),
    Case(n_query=130, n_far=1, n_keys=1000, n_local=600, sinks=True),
    Case(n_query=130, n_far=65, n_keys=300, n_local=40, dim=128, dtype=torch.float16),
    Case(dim=80, n_query=63, ragged=True, n_far=130),
    Case(dim=96, n_query=64, sinks=True, dtype=torch.float16),
    Case(dim=256, n_query=65, n_far=64),
    Case(dim=128, n_query=130, n_far=130, n_keys=400, n_local=256, ragged=True, sinks=True),
    Case(dim=256, n_query=3, n_far=63, n_keys=70, dtype=torch.float16, ragged=True),
    replace(BASE, more=(("keep_pending", False),)),
    replace(BASE, n_query=3, n_local=10, more=(("keep_pending", False), ("mass_of", None))),
    replace(BASE, sinks=True, more=(("softcap", 2.0),)),
    replace(BASE, more=(("mass_of", "logits"), ("softcap", 5.0))),
    replace(BASE, heads=8, kv_heads=1, dim=80, n_local=9, more=(("mass_of", "logits"),)),
    replace(BASE, n_query=200, n_far=0, n_local=300, more=(("mass_of", "logits"),)),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernels_equal_the_torch_form(case):
    compare(case, attend(*case.tensors, **case.settings), case.oracle(attend_blocked))


@pytest.mark.parametrize("mass_of", ["attention", "logits"])
@pytest.mark.parametrize("keep_pending", [True, False])
def test_the_kernels_equal_the_definition(mass_of, keep_pending):
    case = Case(
        heads=4, n_query=17, n_far=21, n_keys=50, n_local=20, ragged=True, sinks=True,
        more=(("softcap", 5.0), ("mass_of", mass_of), ("keep_pending", keep_pending)),
    )  # fmt: skip
    wanted = Attended(*(x if x is None else x.to(DEVICE) for x in case.oracle(attend_naive)))
    compare(case, attend(*case.tensors, **case.settings), wanted)


@pytest.mark.parametrize("n_local", [1, 15, 16, 17, 40, 200])
@pytest.mark.parametrize("group", [1, 4])
def test_the_kernels_are_right_wherever_window_and_edge_pass_through_tiles(n_local, group):
    case = Case(
        heads=group, kv_heads=1, n_query=21, n_far=33, n_keys=75, n_local=n_local, ragged=True
    )
    small = Launch({"TILE_Q": 16, "TILE_K": 16}, 4, 2)
    with ExitStack() as stack:
        for name in ("attend", "attend_split", "attend_few", "attend_few_split", "attention_mass"):
            stack.enter_context(tried(OP, name, small))
        got = attend(*case.tensors, **case.settings)
    compare(case, got, case.oracle(attend_blocked))


def test_keys_are_split_so_that_a_gpu_is_full_and_no_further():
    how = Launch({"TILE_Q": 128, "TILE_K": 128})
    assert fast.splits_of(256, 2176, 5120, how) == 1  # two rounds of programs
    assert fast.splits_of(128, 2176, 5120, how) == 1  # one round
    assert fast.splits_of(64, 2176, 5120, how) == 2
    assert fast.splits_of(8, 2176, 5120, how) > 8
    assert fast.splits_of(1, 0, 500, how) == 1  # too few keys to share


def test_a_gpu_with_little_shared_memory_gets_the_small_tiles(monkeypatch):
    gpu = torch.device("cuda", 0)
    for capability, large in (((9, 0), "attend"), ((8, 9), "attend_few"), ((12, 0), "attend_few")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, it=capability: it)
        assert fast.launch_for(65, gpu) == large
        assert fast.launch_for(64, gpu) == "attend_few"


def test_the_same_call_gives_the_same_bits_wherever_its_tensors_lie():
    case = replace(BASE, ragged=True, n_query=20, n_keys=300)
    first = attend(*case.tensors, **case.settings)
    q = [x.contiguous() for x in case.tensors[:2]]
    elsewhere = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in case.tensors[2:]]
    second = attend(*q, *elsewhere, **case.settings)
    for a, b in zip(first[:3], second[:3], strict=True):
        assert torch.equal(a, b)


def test_a_segment_read_in_pieces_attends_as_one():
    case = replace(BASE, n_query=130, n_keys=260, more=(("mass_of", None),))
    q_near, q_far, far_k, far_v, *local = case.tensors
    whole = attend(*case.tensors, **case.settings)
    start, out = 260 - 130, []
    for at, n in ((0, 1), (1, 64), (65, 65)):
        rows = [x[:, : start + at + n] for x in local]
        q = [x[:, at : at + n] for x in (q_near, q_far)]
        out.append(attend(*q, far_k, far_v, *rows, **case.settings).out)
    rounding = ROUNDED[case.dtype]
    torch.testing.assert_close(torch.cat(out, 1), whole.out, atol=2 * rounding, rtol=rounding)


def test_weights_gradients_and_float32_are_left_to_the_torch_form(monkeypatch):
    def refuse(*_: Any, **__: Any) -> Attended:
        raise AssertionError

    monkeypatch.setattr(fast, "attend_fast", refuse)
    with pytest.raises(AssertionError):
        attend(*BASE.tensors, **BASE.settings)
    q_near, *rest = BASE.tensors
    assert attend(q_near, *rest, **BASE.settings, want_weights=True).weights is not None
    whole = {**BASE.settings, "n_local": 500}
    assert attend(q_near.clone().requires_grad_(), *rest, **whole).out.requires_grad
    attend(q_near.float(), *(x.float() for x in rest), **BASE.settings)


def test_every_kernel_has_a_pinned_launch_for_every_head_dimension():
    from longmem.ops.working_set_attention.kernel import forms

    for dim in (64, 80, 96, 128, 256):
        for form in forms(dim, torch.float16):
            assert form.how == launch_of(OP, form.name, dim)
            named = {*form.types, *form.constants, *form.how.blocks}
            assert named == set(form.kernel.arg_names)


def llama() -> LlamaForCausalLM:
    """A tiny random Llama in bfloat16 with heads of 64."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
        initializer_range=0.2, dtype=torch.bfloat16,
    )  # fmt: skip
    made = LlamaForCausalLM._from_config(config, attn_implementation="eager", dtype=torch.bfloat16)
    return made.eval()


def test_a_model_reads_segments_with_look_ups_as_well_as_without_kernels(monkeypatch):
    config = MemoryConfig(n_init=4, n_local=32, block_size=16, topk=16, lookup_span=48)
    ids = torch.randint(0, 200, (144,), generator=torch.Generator().manual_seed(1)).tolist()

    def logits(mode: str, dtype: torch.dtype) -> Tensor:
        monkeypatch.setenv("LONGMEM_KERNELS", mode)
        model, info = attached(llama().to(DEVICE, dtype))
        memory = new_memory(info, config)
        with torch.inference_mode():
            first = read(model, memory, ids[:96], [ReadSpan(48, 48)] * 2)
            return torch.cat((first, read(model, memory, ids[96:], [ReadSpan(48, 48)]))).float()

    exact = logits("off", torch.float32)
    by_torch, by_kernels = (logits(m, torch.bfloat16) - exact for m in ("off", "interpret"))
    assert by_kernels.norm() < 1.1 * by_torch.norm()  # bfloat16 weighs on both alike
    assert by_torch.norm() < 0.05 * exact.norm()
