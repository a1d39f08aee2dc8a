"""Attention of single tokens of many sessions, each over its own working set."""

from longmem.ops.step_attention.fast import attend_steps
from longmem.ops.step_attention.keys import StepKeys, Stepped
from longmem.ops.step_attention.naive import attend_naive
from longmem.ops.step_attention.places import Place, Places, upload

__all__ = [
    "Place",
    "Places",
    "StepKeys",
    "Stepped",
    "attend_naive",
    "attend_steps",
    "upload",
]
