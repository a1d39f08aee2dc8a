"""Memory of a process that reads on and on: does it grow with the history?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from longmem.bench.stream import Sample


@dataclass(frozen=True)
class MemoryRun:
    """Figures of one stream.

    Args:
        samples: of the process, in order.
        flat_from: tokens from which on memory is to be flat.
        start: bytes of main memory before the stream began, the loaded model included.
        host_bytes: the budget of blocks in host memory.
    """

    samples: Sequence[Sample]
    flat_from: int
    start: int
    host_bytes: int

    def figures(self) -> dict[str, object]:
        """The figures as a JSON-able object. Ratios compare the most from `flat_from` on with what was
        held there."""
        later = [sample for sample in self.samples if sample.tokens >= self.flat_from]
        last = self.samples[-1]
        return {
            "tokens": last.tokens,
            "host_bytes": self.host_bytes,
            "start_bytes": self.start,
            "peak_bytes": last.peak,
            "peak_above_start": last.peak - self.start,
            "kv_bytes": last.kv_bytes,
            "peak_above_start_to_kv": (last.peak - self.start) / last.kv_bytes,
            "flat_from": later[0].tokens if later else None,
            "peak_ratio": last.peak / later[0].peak if later else None,
            "resident_ratio": _growth([sample.resident for sample in later]),
            "device_ratio": _growth([sample.bytes_device for sample in later]),
            "samples": [asdict(sample) for sample in self.samples],
        }


def _growth(held: Sequence[int | None]) -> float | None:
    """The most that was held to what was held first."""
    known = [each for each in held if each is not None]
    return max(known) / known[0] if known and known[0] else None
