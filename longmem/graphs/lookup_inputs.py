"""What a refresh of S sessions reads besides: where their indexes and blocks lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.graphs.inputs import Inputs, Shape
from longmem.graphs.lookups import LookupRow


class LookupInputs(Inputs):
    """The tables of one graph that looks up.

    Args:
        shape, device: as of `Inputs`.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        super().__init__(shape, device)
        cells = shape.layers * shape.sessions
        self._lookups = torch.zeros(8 * cells, dtype=torch.int64, device=device)

    def indexes(self, layer: int) -> Tensor:
        """``[S, 6]`` int64 of one layer."""
        return self._split(self._lookups)[0][layer]

    def directories(self, layer: int) -> Tensor:
        """``[S, 2]`` int64 of one layer."""
        return self._split(self._lookups)[1][layer]

    def upload_lookups(self, rows: Sequence[LookupRow]) -> None:
        """Bring the rows of the sessions; places that are left find no blocks."""
        host = torch.zeros(
            self._lookups.shape, dtype=torch.int64, pin_memory=self.device.type == "cuda"
        )
        indexes, directories = self._split(host)
        for s, row in enumerate(rows):
            indexes[:, s], directories[:, s] = row.indexes, row.directories
        self._lookups.copy_(host, non_blocking=True)

    def _split(self, words: Tensor) -> tuple[Tensor, Tensor]:
        layers, sessions = self.shape.layers, self.shape.sessions
        indexes, directories = words.split_with_sizes(
            [6 * layers * sessions, 2 * layers * sessions]
        )
        return indexes.view(layers, sessions, 6), directories.view(layers, sessions, 2)
