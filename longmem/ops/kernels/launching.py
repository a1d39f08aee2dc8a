"""One way to launch a kernel, on a GPU or in the interpreter."""

from __future__ import annotations

from typing import Any

import torch

from longmem.ops.kernels.configs import Launch


def launch(
    kernel: Any, grid: tuple[int, ...], device: torch.device, how: Launch, *args: Any, **meta: Any
) -> None:
    """Launch `kernel` on `device`'s current stream.

    Args:
        kernel: a function under ``triton.jit``.
        grid: programs per axis.
        device: where its tensors lie; addresses in tables have to be reachable from there.
        how: its pinned launch; `Launch.blocks` become keyword arguments.
        args, meta: the kernel's arguments.
    """
    if device.type != "cuda":
        kernel[grid](*args, **meta, **how.blocks)
    elif device.index in (
        None,
        torch.cuda.current_device(),
    ):  # to change it costs as much as a launch
        kernel[grid](*args, **meta, **how.blocks, **how.options)
    else:
        with torch.cuda.device(device):
            kernel[grid](*args, **meta, **how.blocks, **how.options)
