"""What one segment hands to the next."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from longmem.memory import LayerSpec
from longmem.ops.compressive import CompressiveState, FeatureMap


@dataclass(frozen=True, eq=False)
class RecurrentState:
    """The compressive memories of all layers, of a batch of B sequences.

    Args:
        layers: per layer M ``[B, H_kv, F, D]`` and z ``[B, H_kv, F]``, float32.
    """

    layers: tuple[CompressiveState, ...]

    @classmethod
    def empty(
        cls, specs: tuple[LayerSpec, ...], maps: tuple[FeatureMap, ...], batch: int
    ) -> RecurrentState:
        """Memories that hold nothing."""
        return cls(
            tuple(
                CompressiveState.empty(
                    spec.kv_heads, features.width(spec.dim), spec.dim, spec.device, (batch,)
                )
                for spec, features in zip(specs, maps, strict=True)
            )
        )

    @property
    def tokens(self) -> int:
        """Tokens folded in."""
        return self.layers[0].tokens

    def clone(self) -> RecurrentState:
        """A snapshot to read on from more than once."""
        return RecurrentState(tuple(layer.clone() for layer in self.layers))

    def detach(self) -> RecurrentState:
        """A snapshot that no gradient reaches through."""
        return RecurrentState(tuple(layer.detach() for layer in self.layers))

    def rows(self, index: torch.Tensor) -> RecurrentState:
        """The memories of some sequences: `index` ``[n]`` of the B, repeats allowed."""
        return RecurrentState(
            tuple(CompressiveState(s.M[index], s.z[index], s.tokens) for s in self.layers)
        )
