"""A CUDA device that is not there, for tests: tensors that say they are on it, computed on the CPU.

Torch is asked as it would be on a machine with GPUs, and answers as it would there: tensors of two
devices do not meet, and whatever makes the host wait for a device is counted, or refused. What torch
does on a GPU was read from its sources (`aten/src/ATen/native/cuda`); the rules are in
`tests/pretend_rules.py`. What the pretence cannot see: time, the allocator, and order on streams
that nobody waits for.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import pretend_cuda
import torch
from pretend_cuda import HostMemory, is_pretended
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


@dataclass(frozen=True)
class Wait:
    """The host waited for the device.

    Args:
        why: what made it wait: "item", "download", "upload", "nonzero" ...
        where: file and line of the innermost frame of longmem, or of the caller.
    """

    why: str
    where: str


class Waited(Exception):
    """The host waited where it must not."""


class OnDevice(Tensor):
    """A tensor on a pretended device.

    Args:
        inner: the CPU tensor that holds its values.
        device: where it says it is.
    """

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> Self:
        assert not isinstance(inner, OnDevice) and device.index is not None
        made: Self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnDevice({self.inner!r}, {self.device})"

    def __deepcopy__(self, memo: dict[int, Any]) -> OnDevice:
        copied = OnDevice(self.inner.detach().clone(), self.device)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        assert World.present is not None, "the pretended device is gone"
        return World.present.run(func, args, kwargs or {})


class World:
    """What happens on the pretended devices.

    Args:
        devices: how many there are: cuda:0, cuda:1 ...
    """

    present: World | None = None

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self.waits: list[Wait] = []
        """Every time the host waited for a device, in order."""
        self.transfers: Counter[str] = Counter()
        """Copies between host and devices, by kind: see `pretend_rules.transfer`."""
        self.host = HostMemory()
        """What is pinned, and what is under way."""
        self._forbidden: tuple[str, ...] | None = None

    def device(self, given: Any) -> torch.device:
        """The device with its number."""
        device = torch.device("cuda", given) if isinstance(given, int) else torch.device(given)
        if device.type != "cuda":
            return device
        index = pretend_cuda.current_device() if device.index is None else device.index
        if index >= self.devices:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return torch.device("cuda", index)

    def wait(self, why: str, ticket: int | None = None) -> None:
        """The host waits until all that the devices were given, or were by `ticket`, is done."""
        found = Wait(why, _caller())
        self.waits.append(found)
        self.host.done(self.host.ticket if ticket is None else ticket)
        if self._forbidden is not None and why not in self._forbidden:
            raise Waited(f"{why} waits for the device at {found.where}")

    @contextmanager
    def no_waits(self, *but: str) -> Iterator[None]:
        """Refuse whatever makes the host wait, except for the reasons in `but`."""
        before, self._forbidden = self._forbidden, but
        try:
            yield
        finally:
            self._forbidden = before

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """How often, by reason, the host waits within."""
        start, found = len(self.waits), Counter[str]()
        yield found
        found.update(wait.why for wait in self.waits[start:])

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One operation of torch's dispatcher."""
        import pretend_rules

        return pretend_rules.run(self, func, args, kwargs)

    def call(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One call of a torch function or a method of tensors."""
        import pretend_rules

        return pretend_rules.call(self, func, args, kwargs)


class _Ops(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if World.present is None:  # a pool's thread, which the pretence started and did not end
            return func(*args, **(kwargs or {}))
        return World.present.run(func, args, kwargs or {})


_ASKING = frozenset(
    getattr(Tensor, name).__get__
    for name in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "is_cuda",
        "mT",
        "T",
        "layout",
        "requires_grad",
    )
)
"""What is asked most often, and is the same on any device."""


class _Calls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _ASKING:
            return func(*args)
        if World.present is None:  # as above
            return func(*args, **(kwargs or {}))
        return World.present.call(func, args, kwargs or {})


@contextmanager
def pretend(devices: int = 2) -> Iterator[World]:
    """A machine with so many GPUs, for this thread and those that it starts."""
    assert World.present is None, "one pretence at a time"
    world = World.present = World(devices)
    run = threading.Thread.run

    def run_pretending(thread: threading.Thread) -> None:
        with _Calls(), _Ops():
            run(thread)

    threading.Thread.run = run_pretending  # type: ignore[method-assign]
    try:
        with pretend_cuda.patched(world.host, world.wait), _Calls(), _Ops():
            yield world
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]
        World.present = None


def placed(model: nn.Module, devices: Mapping[str, str]) -> nn.Module:
    """Move a model's parts, as a ``device_map`` does: by the longest name that begins a tensor's."""
    moved: dict[tuple[int, str], Tensor] = {}  # tied weights stay tied
    for name, module in model.named_modules():
        for kind in (module._parameters, module._buffers):
            for own, tensor in list(kind.items()):
                if tensor is not None:
                    full = f"{name}.{own}".lstrip(".")
                    to = devices[max((k for k in devices if full.startswith(k)), key=len)]
                    key = id(tensor), to
                    if key not in moved:
                        moved[key] = _moved(tensor, torch.device(to))
                    kind[own] = moved[key]  # type: ignore[assignment]
    return model


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    made = OnDevice(tensor.detach().clone(), device)
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(made, requires_grad=False) if is_parameter else made


def on_host(x: Any) -> Any:
    """Values, wherever they lie; for tests to compare, and counted as nothing."""
    return tree_map(lambda t: t.inner if isinstance(t, OnDevice) else t, x)


def device_of(x: Any) -> torch.device | None:
    """Where a tensor is, if that is a pretended device."""
    return x.device if isinstance(x, OnDevice) else None


def _caller() -> str:
    """The innermost frame of longmem, else of whoever is outside of torch and these files."""
    frame, outside = sys._getframe(2), None
    while frame is not None:
        name = frame.f_code.co_filename
        if "/longmem/" in name:
            return f"{name.rpartition('/longmem/')[2]}:{frame.f_lineno}"
        if outside is None and "/torch/" not in name and "pretend_" not in name:
            outside = f"{name.rpartition('/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return outside or "?"


__all__ = ["OnDevice", "Wait", "Waited", "World", "is_pretended", "on_host", "placed", "pretend"]
