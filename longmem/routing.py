"""Where the attention of models goes now: to whatever was told to route it, in this thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from longmem.memory import AttentionCall


class Router(Protocol):
    """What the attention function hands its tensors to: see `longmem.memory.ForwardPass`."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, call: AttentionCall) -> Tensor:
        """``[1, H, T, D]``, ``[1, H_kv, T, D]`` twice -> ``[1, T, H, D]``."""


_router: ContextVar[Any] = ContextVar("longmem_router", default=None)
"""Not a keyword argument of the model: some layers drop those."""


_opaque = False  # a plain variable: the compiler cannot look into a ContextVar


def opaque() -> bool:
    """Whether a compiler is at work on `longmem.compiled.Compiled`, to which attention is one step that
    it does not look into."""
    return _opaque and torch.compiler.is_compiling()


@contextmanager
def closed_to_compiler() -> Iterator[None]:
    """Let `opaque` hold meanwhile."""
    global _opaque
    before, _opaque = _opaque, True
    try:
        yield
    finally:
        _opaque = before


def current() -> Any:
    """The router, or the probe that measures a model; None outside longmem."""
    return _router.get()


@contextmanager
def route(router: Any) -> Iterator[None]:
    """Hand the attention of models that were attached to `router` meanwhile, in this thread."""
    token = _router.set(router)
    try:
        yield
    finally:
        _router.reset(token)
