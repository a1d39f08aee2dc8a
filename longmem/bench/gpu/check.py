"""Every op against its twin: a kernel that is wrong has no speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch

from longmem.bench.chat_stream import Report, silent
from longmem.bench.gpu.budget import Budget
from longmem.bench.gpu.plan import Plan
from longmem.bench.gpu.steps_check import check_steps
from longmem.bench.gpu.trust import Checked, Trust
from longmem.bench.kernels.case import Case
from longmem.bench.kernels.cases import cases
from longmem.bench.kernels.size import TINY, Size
from longmem.ops.kernels import DTYPES

_OWN = torch.bfloat16
"""What models are measured in."""
_COMPILE_S = 60.0
"""Seconds that the kernels of one head dimension and dtype are expected to take to compile."""

MakeCases = Callable[..., Iterator[Case]]


def check(plan: Plan, report: Report = silent, make: MakeCases = cases) -> Trust:
    """Compare what the sections of `plan` are built on.

    Args:
        plan: its shape's head dimension is compared in bfloat16, at ragged and at its full sizes.
        report: told what is compared.
        make: gives the cases of the ops.
    """
    ops = []
    for size in dict.fromkeys((TINY, plan.shape.size)):
        ops += _compare(plan, plan.shape.dim, _OWN, size, report, make)
    report("check: a small model's steps")
    try:
        return Trust(ops, check_steps(plan.device))
    except Exception as error:
        return Trust(ops, [Checked("steps", "all", "", plan.shape.dim, "", None, _told(error))])


def check_others(
    plan: Plan, budget: Budget, report: Report = silent, make: MakeCases = cases
) -> Iterator[Checked]:
    """Compare all other head dimensions and dtypes at ragged sizes, as far as time goes: compiling
    their kernels takes longer than measuring. In the interpreter there are none."""
    for dim, dtype in product(plan.shape.dims, () if plan.interpreted else DTYPES):
        if (dim, dtype) == (plan.shape.dim, _OWN):
            continue
        if budget.allows(f"comparisons at D = {dim}, {_named(dtype)}", _COMPILE_S):
            yield from _compare(plan, dim, dtype, TINY, report, make)


def _compare(
    plan: Plan, dim: int, dtype: torch.dtype, size: Size, report: Report, make: MakeCases
) -> list[Checked]:
    report(f"check: D = {dim}, {_named(dtype)}, {'ragged' if size is TINY else 'full'} sizes")
    return checked(make(dim, dtype, plan.device, size, plan.ops), dtype)


def checked(made: Iterator[Case], dtype: torch.dtype) -> list[Checked]:
    """Compare each case. What raises is wrong; if making a case does, those after it are not made."""
    found: list[Checked] = []
    while True:
        try:
            case = next(made)
        except StopIteration:
            return found
        except Exception as error:
            made_up = Checked("unknown", "its case", "", 0, _named(dtype), None, _told(error))
            return [*found, made_up]
        found.append(_compared(case, dtype))
        del case  # its inputs go before the next one's are made


def _compared(case: Case, dtype: torch.dtype) -> Checked:
    error, why = None, ""
    try:
        error = float(case.error())
    except Exception as raised:
        why = _told(raised)
    return Checked(case.op, case.name, case.shape, case.dim, _named(dtype), error, why)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
