"""What a merged file keeps of each commit: its state, and the rows there were by then."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from longmem.stores.header import DTYPES

INDEX, STATES = "commits.index", "commits.states"
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class CommitIndex:
    """Grows commit by commit; `tensors` are its form on disk.

    Args:
        commits: of each commit ``{"rows": {name: rows so far}, "state": {name: where}}``, where a
            tensor lies as [dtype, shape, offset, bytes].
    """

    def __init__(self, commits: Sequence[Mapping[str, Any]] = ()) -> None:
        self._commits = list(commits)
        self._states = bytearray()
        self._last: dict[str, tuple[bytes, list[Any]]] = {}

    @classmethod
    def load(cls, index: Tensor) -> Self:
        """What `tensors` gave under ``commits.index``."""
        return cls(json.loads(zlib.decompress(index.numpy().tobytes())))

    def add(self, state: Mapping[str, Tensor], rows: Mapping[str, int]) -> None:
        """One more commit.

        Args:
            state: what it left.
            rows: of each append-only tensor, with those of all commits before it in the file.
        """
        places = {name: self._place(name, tensor) for name, tensor in state.items()}
        self._commits.append({"rows": dict(rows), "state": places})

    def rows(self, commit: int) -> dict[str, int]:
        """Rows of each append-only tensor when commit number `commit`, from 0, was through."""
        return dict(self._commits[commit]["rows"])

    def places(self, commit: int) -> dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]:
        """Of each tensor of a commit's state dtype, shape, and bytes ``from .. to`` of the states."""
        return {
            name: (DTYPES[dtype], tuple(shape), offset, offset + nbytes)
            for name, (dtype, shape, offset, nbytes) in self._commits[commit]["state"].items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """As bytes: ``[n]`` uint8 each."""
        index = zlib.compress(json.dumps(self._commits, separators=(",", ":")).encode())
        return {INDEX: _bytes(index), STATES: _bytes(bytes(self._states))}

    def beginning(self, commits: int, states: Tensor) -> dict[str, Tensor]:
        """As `tensors`, of the first `commits` commits alone.

        Args:
            states: ``[n]`` uint8, what lies under ``commits.states`` for all of them.
        """
        first = CommitIndex(self._commits[:commits])
        places = [place for commit in first._commits for place in commit["state"].values()]
        stop = max((offset + nbytes for _, _, offset, nbytes in places), default=0)
        return {INDEX: first.tensors()[INDEX], STATES: states[:stop]}

    def _place(self, name: str, tensor: Tensor) -> list[Any]:
        """Where a tensor lies: where it lay for the commit before, if it is still the same."""
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        form = [_NAMES[tensor.dtype], list(tensor.shape)]
        last, place = self._last.get(name, (b"", []))
        if last != data or place[:2] != form:
            place = [*form, len(self._states), len(data)]
            self._states += data
            self._last[name] = (data, place)
        return place


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0).byte()
