"""Where a reader is surprised: boundaries of blocks from what the model expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.reading import Reading
from longmem.memory.surprise import SurpriseBoundaries, SurpriseMark


@dataclass(frozen=True, eq=False)
class TextMark:
    """A point `ExpectedText.rewind` can go back to."""

    boundaries: SurpriseMark
    next_token: Tensor | None


class ExpectedText:
    """Surprise of every token, read or generated, and the boundaries it makes (EM-LLM, arXiv
    2407.09450, equation 1). A turn start is always one.

    Args:
        config: how boundaries are found.
        n_init: end of the initial tokens, the first edge.
    """

    def __init__(self, config: MemoryConfig, n_init: int) -> None:
        self._boundaries = SurpriseBoundaries(
            n_init,
            gamma=config.surprise_gamma,
            window=config.surprise_window,
            min_block=config.min_block,
            block_size=config.block_size,
            refine=config.refine,
        )
        self._next_token: Tensor | None = None  # log-probabilities [V] after the last token read

    def see(
        self,
        reading: Reading,
        ids: Tensor,
        logits: Tensor,
        keys: Callable[[int, int], Tensor],
    ) -> list[int]:
        """Edges that became final in a pass.

        Args:
            reading: the pass.
            ids: ``[T]`` its tokens.
            logits: ``[T, V]`` float32 after each of them.
            keys: ``(start, stop)`` -> raw keys ``[stop - start, C]`` whose likeness refines.
        """
        expected = torch.log_softmax(logits, dim=-1)
        surprise = torch.full((len(ids),), torch.nan, device=logits.device)
        surprise[1:] = -expected[:-1].gather(1, ids[1:, None])[:, 0]
        if self._next_token is not None:
            surprise[:1] = -self._next_token.gather(0, ids[:1])
        elif reading.start not in reading.turn_starts:
            raise RuntimeError(f"token {reading.start} starts no turn and follows none")
        self._next_token = expected[-1].clone()
        edges = self._boundaries.read(reading.start, surprise.cpu(), reading.turn_starts, keys)
        return [edge.position for edge in edges]

    def mark(self) -> TextMark:
        """Where it stands now."""
        return TextMark(self._boundaries.mark(), self._next_token)

    def rewind(self, mark: TextMark) -> None:
        """Back to `mark`."""
        self._boundaries.rewind(mark.boundaries)
        self._next_token = mark.next_token

    def export(self) -> dict[str, Tensor]:
        """State at the end of a turn, for a snapshot."""
        return {f"surprise.{name}": t for name, t in self._boundaries.export().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `export` gave."""
        prefix = "surprise."
        own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        self._boundaries.load(own)
        self._next_token = None
