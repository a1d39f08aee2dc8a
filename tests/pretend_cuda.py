"""What the pretended devices need of ``torch.cuda``: streams, events, generators, pinned memory."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_current = threading.local()
_CUDA, _META, _TYPES = 1, 14, 21  # numbers of c10::DeviceType
_BEHIND = 50
"""Operations that a device lies behind the host."""


def is_pretended(device: Any) -> bool:
    """Whether what names a device names a CUDA one."""
    if isinstance(device, int) and not isinstance(device, bool):
        return True
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"


def current_device() -> int:
    """Number of this thread's device."""
    return getattr(_current, "device", 0)


class HostMemory:
    """Pinned memory, and copies that may not be done yet.

    A copy in the background is made at once here, but until the host knows that it is done, its host
    side must not be touched: that is what a real one would race with.
    """

    _pinned: ClassVar[
        list[tuple[int, int, StorageWeakRef]]
    ] = []  # outlives a pretence, as memory does
    ticket: ClassVar[int] = 0
    """Operations that devices were given so far."""

    def __init__(self) -> None:
        self._under_way: list[tuple[int, int, str, int, object]] = []

    def given(self) -> None:
        """A device was given one more operation."""
        HostMemory.ticket += 1

    def pin(self, tensor: Tensor) -> Tensor:
        """Call the tensor's memory pinned."""
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        self._pinned[:] = [each for each in self._pinned if not each[2].expired()]
        self._pinned.append((start, start + storage.nbytes(), StorageWeakRef(storage)))
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether it was; also told by its address, as CUDA tells it."""
        lo, hi = _extent(tensor)
        return any(a <= lo and hi <= b and not ref.expired() for a, b, ref in self._pinned)

    @property
    def busy(self) -> bool:
        """Whether copies may be under way."""
        return bool(self._under_way)

    def send(self, tensor: Tensor, way: str) -> None:
        """A copy "up" from this pinned tensor, or "down" into it, has begun in the background."""
        ref = StorageWeakRef(storage := tensor.untyped_storage())
        own = any(ref == each for *_, each in self._pinned)  # torch keeps these until it is done
        self._under_way.append((*_extent(tensor), way, self.ticket, storage if own else None))

    def done(self, ticket: int) -> None:
        """The host knows that what was given by then is done."""
        if self._under_way:
            self._under_way = [each for each in self._under_way if each[3] > ticket]

    def check(self, tensor: Tensor, writes: bool) -> None:
        """Refuse to read what has not arrived, and to write over what is not yet copied."""
        if not self._under_way:
            return
        lo, hi = _extent(tensor)
        for a, b, way, _, _ in self._under_way:
            if a < hi and lo < b and (writes or way == "down"):
                what = "written on the host while a copy uses it" if writes else "read on the host"
                raise AssertionError(f"{what}: a copy {way} was not waited for")


def _extent(tensor: Tensor) -> tuple[int, int]:
    """First address, and the one behind the last."""
    start = tensor.data_ptr()
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size() if tensor.numel() else start


class Generator(torch.Generator):
    """Random numbers on a device that may be pretended; drawn by the CPU's."""

    named: torch.device

    def __new__(cls, device: Any = "cpu") -> Generator:
        made = super().__new__(cls, device="cpu")
        made.named = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it says it is."""
        return self.named


class _Device:
    """`torch.cuda.device`."""

    def __init__(self, device: Any) -> None:
        self._index = device if isinstance(device, int) else torch.device(device).index or 0
        self._before = 0

    def __enter__(self) -> None:
        self._before, _current.device = current_device(), self._index

    def __exit__(self, *_: object) -> None:
        _current.device = self._before


class Stream:
    """`torch.cuda.Stream`."""

    host: ClassVar[HostMemory]
    wait: ClassVar[Callable[..., None]]

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("cuda", current_device()) if device is None else device
        self.cuda_stream = id(self)

    def synchronize(self) -> None:
        """The host waits."""
        Stream.wait("stream")

    def wait_stream(self, other: Stream) -> None:
        """The device waits."""

    def wait_event(self, event: Event) -> None:
        """The device waits."""

    def record_event(self, event: Event | None = None) -> Event:
        """An event of what was asked so far."""
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        """Never known to be through."""
        return False


class Event:
    """`torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, **_: Any) -> None:
        self._ticket = 0

    def record(self, stream: Stream | None = None) -> None:
        """Stands for all that was asked so far."""
        self._ticket = Stream.host.ticket

    def wait(self, stream: Stream | None = None) -> None:
        """The device waits."""

    def query(self) -> bool:
        """Whether it is reached: when the device was given some more to do since."""
        reached = Stream.host.ticket - self._ticket >= _BEHIND
        if reached:
            Stream.host.done(self._ticket)
        return reached

    def synchronize(self) -> None:
        """The host waits, for what came before the event."""
        if not self.query():
            Stream.wait("event", self._ticket)


@contextmanager
def _stream(stream: Stream | None) -> Iterator[None]:
    before, _current.stream = current_stream(), stream or current_stream()
    try:
        yield
    finally:
        _current.stream = before


def current_stream(device: Any = None) -> Stream:
    """`torch.cuda.current_stream`."""
    if not hasattr(_current, "stream"):
        _current.stream = Stream()
    found: Stream = _current.stream
    return found


@contextmanager
def patched(host: HostMemory, wait: Callable[..., None]) -> Iterator[None]:
    """``torch.cuda`` and pinned memory as if there were GPUs."""
    Stream.host, Stream.wait = host, staticmethod(wait)
    new = {
        "Stream": Stream,
        "Event": Event,
        "device": _Device,
        "stream": _stream,
        "current_stream": current_stream,
        "default_stream": current_stream,
        "current_device": current_device,
        "synchronize": lambda device=None: wait("synchronize"),
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: SimpleNamespace(multi_processor_count=132),
    }
    with (
        mock.patch.multiple(torch.cuda, **new),
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(Tensor, "pin_memory", lambda t, *_: host.pin(t.clone())),
        mock.patch.object(Tensor, "is_pinned", lambda t, *_: host.is_pinned(t)),
        _guards(),
        _new_parameters(),
    ):
        yield


@contextmanager
def _new_parameters() -> Iterator[None]:
    """Let ``module.to`` make new parameters, as it must where tensors are of another class."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        yield
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


@contextmanager
def _guards() -> Iterator[None]:
    """Let torch switch to pretended devices as it does to meta ones: by doing nothing. A build without
    CUDA has no guard for it, and indexing wants one."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    name = "_ZN3c104impl26device_guard_impl_registryE"
    guards = (ctypes.c_void_p * _TYPES).in_dll(library, name)
    before = guards[_CUDA]
    guards[_CUDA] = guards[_META]
    try:
        yield
    finally:
        guards[_CUDA] = before
