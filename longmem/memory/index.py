"""The index of one layer's closed blocks: what look-ups read of them."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.memory.spec import LayerSpec
from longmem.retrieval import Form, IndexRows

SUB_BLOCK = 16
"""Tokens of a sub-block in the "means" form; InfLLM v2's stride."""

_FIRST_ROWS = 256


class BlockIndex:
    """Rows ``[H_kv, M, D']`` of closed blocks, packed block by block without padding.

    What a row is depends on the form:

    - "tokens" (D' = D): representative keys, the R tokens with most mass per KV head (InfLLM, arXiv
      2402.04617, section 3.2); all keys of a block that has no more than R. Not their mean.
    - "bounds" (D' = 2 D): one row, channel-wise largest then smallest value of the block's keys
      (Quest, arXiv 2406.10774).
    - "means" (D' = D): the mean key of every `SUB_BLOCK` tokens (InfLLM v2, arXiv 2506.07900).

    Blocks keep their numbers when older ones are dropped: `first` is the oldest candidate.

    Args:
        spec: the layer.
        n_repr: R, of the "tokens" form.
        form: what a row is.
    """

    def __init__(self, spec: LayerSpec, n_repr: int, form: Form = "tokens") -> None:
        self.spec = spec
        self._n_repr = n_repr
        self._form = form
        self.first = 0
        """Oldest block that look-ups may choose."""
        self._held = 0  # oldest block whose rows are held
        self._starts = torch.zeros(_FIRST_ROWS, dtype=torch.int64)  # first row of each held block
        self._n = 0  # blocks held; _starts[_n] is the end of the last one
        self._keys = self._allocate(_FIRST_ROWS)

    def __len__(self) -> int:
        """Blocks closed so far, dropped ones included."""
        return self._held + self._n

    @property
    def rows(self) -> IndexRows:
        """The rows of blocks ``first .. len - 1``, a view: read it before blocks are added."""
        starts = self._starts[self.first - self._held : self._n + 1]
        return IndexRows(self._keys[:, int(starts[0]) : int(starts[-1])], starts, self.spec.scaling)

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self._keys.nbytes + self._starts.nbytes

    def add(self, raw: Tensor, mass: Tensor) -> None:
        """Add a closed block.

        Args:
            raw: ``[H_kv, n, D]`` its un-rotated keys.
            mass: ``[H_kv, n]`` what makes a token representative, the more the better; read by the
                "tokens" form alone.
        """
        rows = self._summarise(raw, mass)
        start, n = self._end, rows.shape[1]
        self._reserve(n)
        self._keys[:, start : start + n] = rows
        self._n += 1
        self._starts[self._n] = start + n

    def truncate(self, n: int) -> None:
        """Forget the blocks from `n` on."""
        assert n >= self._held, f"block {n} was released"
        self._n = min(self._n, n - self._held)
        self.first = min(self.first, n)

    def drop_front(self, first: int) -> None:
        """Let look-ups choose among blocks ``first .. len - 1``. May go back to a lower `first` than
        before, as far as blocks were not released."""
        assert self._held <= first <= len(self), f"blocks before {self._held} were released"
        self.first = first

    def release(self, n: int) -> None:
        """Dropped blocks before `n` will not be wanted back: let their rows go.

        They are moved out once they are half of all rows, so that each row is moved once on average.
        """
        gone = min(self.first, n) - self._held
        row = int(self._starts[gone]) if gone > 0 else 0
        if row == 0 or 2 * row < self._end:
            return
        keys = self._keys[:, row : self._end]
        self._keys = self._allocate(keys.shape[1] + _FIRST_ROWS)
        self._keys[:, : keys.shape[1]] = keys
        self._starts = torch.cat((self._starts[gone:] - row, self._starts.new_zeros(gone)))
        self._held += gone
        self._n -= gone

    def export(self, since: int) -> tuple[Tensor, Tensor]:
        """Blocks from `since` on: rows ``[M', H_kv, D']`` and their number per block ``[N']`` int32."""
        assert since >= self._held, f"block {since} was released"
        starts = self._starts[since - self._held : self._n + 1]
        keys = self._keys[:, int(starts[0]) : int(starts[-1])]
        return keys.transpose(0, 1).contiguous(), starts.diff().int()

    def load(self, keys: Tensor, counts: Tensor, first: int = 0) -> None:
        """Hold exactly the blocks that `export` gave, numbered from `first` on."""
        self.first = self._held = first
        self._n, rows = len(counts), keys.shape[0]
        self._starts = torch.zeros(self._n + _FIRST_ROWS, dtype=torch.int64)
        self._starts[1 : self._n + 1] = counts.cumsum(0)
        self._keys = self._allocate(rows + _FIRST_ROWS)
        self._keys[:, :rows] = keys.transpose(0, 1)

    @property
    def _end(self) -> int:
        return int(self._starts[self._n])

    def _summarise(self, raw: Tensor, mass: Tensor) -> Tensor:
        """The rows ``[H_kv, r, D']`` of a block's raw keys ``[H_kv, n, D]``."""
        if self._form == "bounds":
            return torch.cat((raw.amax(1, keepdim=True), raw.amin(1, keepdim=True)), dim=2)
        if self._form == "means":
            parts = raw.tensor_split(list(range(SUB_BLOCK, raw.shape[1], SUB_BLOCK)), dim=1)
            return torch.stack([part.mean(1) for part in parts], dim=1)
        if raw.shape[1] <= self._n_repr:
            return raw
        best = mass.topk(self._n_repr, dim=1).indices
        return raw.gather(1, best[..., None].expand(-1, -1, raw.shape[2]))

    def _reserve(self, rows: int) -> None:
        """Room for one more block; by half as much again, so that a row is moved a few times at most."""
        if self._n + 1 >= self._starts.shape[0]:
            room = self._starts.new_zeros(self._starts.shape[0] // 2)
            self._starts = torch.cat((self._starts, room))
        end = self._end
        if end + rows > self._keys.shape[1]:
            keys = self._keys
            self._keys = self._allocate((end + rows) * 3 // 2)
            self._keys[:, :end] = keys[:, :end]

    def _allocate(self, rows: int) -> Tensor:
        spec = self.spec
        width = 2 * spec.dim if self._form == "bounds" else spec.dim
        return torch.zeros(spec.kv_heads, rows, width, dtype=spec.dtype, device=spec.device)
