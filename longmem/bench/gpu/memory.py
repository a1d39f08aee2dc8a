"""What a session holds by length of its history: on the device, of it the block index, and on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from longmem.engine import Engine
from longmem.memory import SessionMemory


@dataclass(frozen=True)
class MemorySample:
    """Bytes at one length.

    Args:
        history: tokens held.
        codec: of the blocks.
        steady: allocated on the device once everything is read, weights included.
        peak_reading: most that was allocated while the last part was read.
        peak_decoding: most while steps were decoded; None where none were.
        weights: of the model.
        session: buffers of the session on the device, as longmem counts them.
        index: of these, the block index.
        host: blocks in host memory.
        counted: there is no device that could be asked: `steady` and peaks are weights + session.
    """

    history: int
    codec: str
    steady: int
    peak_reading: int
    peak_decoding: int | None
    weights: int
    session: int
    index: int
    host: int
    counted: bool

    @property
    def peak(self) -> int:
        """The larger peak."""
        return max(self.peak_reading, self.peak_decoding or 0)

    def row(self) -> dict[str, object]:
        """JSON-able."""
        return {**asdict(self), "peak": self.peak}


class Meter:
    """Samples of one device's memory.

    Args:
        engine: whose weights are counted.
    """

    def __init__(self, engine: Engine) -> None:
        self._device = engine.device
        self._weights = sum(int(p.nbytes) for p in engine.model.parameters())
        self._cuda = engine.device.type == "cuda"

    def begin(self) -> None:
        """Peaks count from here."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self, memory: SessionMemory) -> int:
        """The most that was allocated since `begin`."""
        if self._cuda:
            return int(torch.cuda.max_memory_allocated(self._device))
        return int(self._weights + memory.bytes_device)

    def sample(
        self, memory: SessionMemory, peak_reading: int, peak_decoding: int | None
    ) -> MemorySample:
        """What is held now."""
        held = memory.bytes_device
        steady = self._weights + held
        if self._cuda:
            steady = int(torch.cuda.memory_allocated(self._device))
        return MemorySample(
            history=memory.n_tokens,
            codec=memory.config.codec,
            steady=steady,
            peak_reading=peak_reading,
            peak_decoding=peak_decoding,
            weights=self._weights,
            session=held,
            index=memory.bytes_index,
            host=sum(layer.tier.bytes for layer in memory.full_layers),
            counted=not self._cuda,
        )


def growth(samples: Sequence[MemorySample], short: int, long: int) -> float | None:
    """How much more device memory was taken at its highest at `long` tokens than at `short`, as a
    share; None where one of them was not measured."""
    peaks = {sample.history: sample.peak for sample in samples}
    if short not in peaks or long not in peaks:
        return None
    return peaks[long] / peaks[short] - 1
