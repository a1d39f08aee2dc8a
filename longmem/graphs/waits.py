"""What cannot be captured is found before a capture begins: one that fails leaves torch's allocator and
random numbers in the middle of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "is_nonzero", "_unique2"}
"""Operations that read values, or whose result has as many rows as values say."""
_INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}
_COPIES = {"_to_copy", "copy_"}


class NoWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives no types
    """Within, in this thread, what makes the host wait for `device` raises.

    Args:
        device: where the work is done.

    Raises:
        RuntimeError: from the operation that would wait, with its name.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self._device = device

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").split(".")[0]
        if self._waits(name, args, kwargs):
            raise RuntimeError(f"{func.name()} waits for {self._device}")
        return func(*args, **kwargs)

    def _waits(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        there = [x for x in tree_leaves(args) if self._is_there(x)]
        if name in _READS:
            return bool(there)
        if name in _INDEXES:  # a mask is counted first
            return any(x.dtype in (torch.bool, torch.uint8) for x in there[1:])
        return name in _COPIES and self._crosses(args, kwargs)

    def _crosses(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether a copy goes between host and device; those of pinned memory are not waited for."""
        first, *others = args
        to = kwargs.get("device") or first.device
        source = others[0] if others and isinstance(others[0], Tensor) else first
        ends = {source.device.type, torch.device(to).type}
        return len(ends) > 1 and not (source.device.type == "cpu" and source.is_pinned())

    def _is_there(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.device.type == self._device.type
