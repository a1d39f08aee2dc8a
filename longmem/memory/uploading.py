"""Small tables on their way from the host to a device, and rows on their way back into another thread."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Values of the host on a device, without waiting for it; themselves if that is the host.

    Memory of the host that is not pinned would be waited for.
    """
    if device.type == "cuda":
        values = values.pin_memory()  # not given out again before the copy is through
    return values.to(device, non_blocking=True)


def downloaded_later(values: Tensor, at: Tensor | None = None) -> Callable[[], Tensor]:
    """What gives values on the host, in any thread: there it waits for what the device was given to do so
    far, and not for what comes after.

    Args:
        values: they must not change meanwhile.
        at: which of them, int64 on the host; None: all.
    """
    if values.device.type != "cuda":
        return lambda: values if at is None else values[at]
    written = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch gives it no types
    written.record(torch.cuda.current_stream(values.device))

    def download() -> Tensor:
        stream = _stream(values.device)
        stream.wait_event(written)
        with torch.cuda.stream(stream):
            return (values if at is None else values[upload(at, values.device)]).cpu()

    return download


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch gives it no types
