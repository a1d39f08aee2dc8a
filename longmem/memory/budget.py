"""How a session's layers share the bytes that closed blocks may take."""

from __future__ import annotations

from collections.abc import Sequence

from longmem.config import MemoryConfig
from longmem.memory.role import LayerRole
from longmem.memory.spec import LayerSpec

DEVICE_BYTES_GPU = 2**30
"""`MemoryConfig.device_bytes` where it is None and the model is not on a CPU, whose memory is the
host's."""


class TierBudget:
    """Equal parts of host_bytes and device_bytes for every layer that attends to blocks.

    The block index counts inside: on the host's bytes where the model runs on a CPU, on the
    device's otherwise.

    Args:
        config: host_bytes and device_bytes.
        specs: the model's attention layers.
    """

    def __init__(self, config: MemoryConfig, specs: Sequence[LayerSpec]) -> None:
        self._on_cpu = specs[0].device.type == "cpu"
        self._host = config.host_bytes
        given, default = config.device_bytes, 0 if self._on_cpu else DEVICE_BYTES_GPU
        self._device = default if given is None else given
        roles = [LayerRole.of(spec, config) for spec in specs]
        self._layers = max(1, sum(role.attends for role in roles))
        self._indices = max(1, sum(role.indexed for role in roles))
        self._index = 0

    def charge_index(self, index_bytes: int) -> None:
        """The block indices of all layers take this many bytes now."""
        self._index = index_bytes

    @property
    def index(self) -> int:
        """Bytes one layer's block index should stay below: half of all there is goes to the indices."""
        return (self._host if self._on_cpu else self._device) // 2 // self._indices

    @property
    def host(self) -> int:
        """Bytes of blocks one layer may hold in host memory."""
        return max(0, self._host - (self._index if self._on_cpu else 0)) // self._layers

    @property
    def device(self) -> int:
        """Bytes of block slots one layer may hold on the device."""
        return max(0, self._device - (0 if self._on_cpu else self._index)) // self._layers
