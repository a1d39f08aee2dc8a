"""The index of one layer's closed blocks: what look-ups read of them."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.errors import CorruptDataError
from longmem.memory.index_on_device import IndexOnDevice
from longmem.memory.shelf_plan import Grid
from longmem.memory.shelves import Shelves
from longmem.memory.spec import LayerSpec
from longmem.memory.stored import Stored
from longmem.ops.block_scoring import IndexRow
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

    With a grid the rows of older blocks are also grouped (`Shelves`), and above `Grid.above`
    candidates look-ups go through those groups: then only the rows of blocks on no shelf that serves
    are held here, once the others are committed.

    Args:
        spec: the layer.
        n_repr: R, of the "tokens" form.
        form: what a row is.
        grid: of the shelves; None has none.
    """

    def __init__(
        self, spec: LayerSpec, n_repr: int, form: Form = "tokens", grid: Grid | None = None
    ) -> None:
        self.spec = spec
        self._n_repr = n_repr
        self._form = form
        self.first = 0
        """Oldest block that look-ups may choose."""
        self._held = 0  # oldest block whose rows are held
        self._oldest = 0  # oldest block that may become a candidate again
        self._starts = torch.zeros(_FIRST_ROWS, dtype=torch.int64)  # first row of each held block
        self._n = 0  # blocks held; _starts[_n] is the end of the last one
        there = spec.kernels or spec.device.type != "cpu"
        self._there = IndexOnDevice(spec.device) if there else None
        self._keys = self._allocate(_FIRST_ROWS)
        self.grid = grid
        self.shelves = Shelves(spec, grid) if grid else None
        """Groups of the rows of full shelves; None where every look-up reads all rows."""
        self.max_bytes: int | None = None
        """Bytes to stay below where the store holds the rows of groups, too: as far as one look-up
        through groups can be done."""

    def __len__(self) -> int:
        """Blocks closed so far, dropped ones included."""
        return self._held + self._n

    @property
    def grouped(self) -> bool:
        """Whether look-ups go through groups."""
        return self.shelves is not None and len(self) - self.first > self.shelves.grid.above

    @property
    def loose(self) -> int:
        """Oldest of the blocks of which look-ups score every row: all candidates, or those on no
        shelf."""
        if self.shelves is not None and self.grouped:
            return max(self.first, self.shelves.stop)
        return self.first

    @property
    def width(self) -> int:
        """Values that a query brings before votes are counted: one per block, or two per group and
        one per block on no shelf."""
        groups = 0
        if self.shelves is not None and self.grouped:
            groups = self.shelves.candidates(self.first)[2].shape[0]
        return 2 * groups + len(self) - self.loose

    @property
    def rows(self) -> IndexRows:
        """The rows of blocks ``loose .. len - 1``, a view: read it before blocks are added."""
        return self._rows(self.loose, len(self))

    @property
    def row(self) -> IndexRow:
        """Blocks ``loose .. len - 1`` as kernels find them: valid until the index changes."""
        assert self._there is not None, "kernels do not serve this index"
        starts = self._there.starts(self._starts, self._n + 1).data_ptr()
        room = self._keys.shape[1]
        return IndexRow(self._keys.data_ptr(), starts, self._held, self.loose, len(self), room)

    @property
    def table(self) -> Tensor:
        """``[1, 6]`` int64 on the device: `row`."""
        row = self.row
        assert self._there is not None
        return self._there.table(row)

    @property
    def most_rows(self) -> int:
        """Most rows of a block in the "tokens" form."""
        return self._n_repr

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return self._own_bytes + (self.shelves.bytes if self.shelves else 0)

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
        self._changed(self._n)
        if self.shelves is not None:
            self.shelves.grow(len(self), self._rows)

    def truncate(self, n: int) -> None:
        """Forget the blocks from `n` on."""
        assert n >= self._held, f"block {n} was released"
        self._n = min(self._n, n - self._held)
        self.first = min(self.first, n)
        if self.shelves is not None:
            self.shelves.truncate(n)

    def drop_front(self, first: int) -> None:
        """Let look-ups choose among blocks ``first .. len - 1``. May go back to a lower `first` than
        before, as far as blocks were not released."""
        assert self._oldest <= first <= len(self), f"blocks before {self._oldest} were released"
        self.first = first

    def release(self, n: int) -> None:
        """All that is held is committed, and dropped blocks before `n` will not be wanted back: let go
        of their rows, and of those that look-ups read in groups.

        They are moved out once they are half of all rows, so that each row is moved once on average.
        """
        first = min(self.first, n)
        gone = (self.loose if self.grouped else first) - self._held
        row = int(self._starts[gone]) if gone > 0 else 0
        if row and 2 * row >= self._end:
            keys = self._keys[:, row : self._end]
            self._keys = self._allocate(keys.shape[1] + _FIRST_ROWS)
            self._keys[:, : keys.shape[1]] = keys
            self._starts = torch.cat((self._starts[gone:] - row, self._starts.new_zeros(gone)))
            self._held += gone
            self._n -= gone
            self._changed(0)
            self._oldest = max(self._oldest, min(first, self._held))
        if self.shelves is not None:
            self._limit(self.shelves)
            self.shelves.release(min(first, self._held))

    def export(self, since: int) -> tuple[Tensor, Tensor]:
        """Blocks from `since` on: rows ``[M', H_kv, D']`` and their number per block ``[N']`` int32."""
        assert since >= self._held, f"block {since} was released"
        starts = self._starts[since - self._held : self._n + 1]
        keys = self._keys[:, int(starts[0]) : int(starts[-1])]
        return keys.transpose(0, 1).contiguous(), starts.diff().int()

    def load(self, keys: Tensor, counts: Tensor, first: int = 0) -> None:
        """Hold exactly the blocks that `export` gave, numbered from `first` on."""
        self.first = self._held = self._oldest = first
        self._n, rows = len(counts), keys.shape[0]
        self._starts = torch.zeros(self._n + _FIRST_ROWS, dtype=torch.int64)
        self._starts[1 : self._n + 1] = counts.cumsum(0)
        self._changed(0)
        self._keys = self._allocate(rows + _FIRST_ROWS)
        self._keys[:, :rows] = keys.transpose(0, 1)

    def restore(self, stored: Stored, blocks: int, first: int) -> None:
        """Become the index of a stored session of `blocks` blocks, of which look-ups may choose those
        from `first` on. Rows that are read in groups stay in the store; what was stored without
        groups is grouped now.

        Raises:
            CorruptDataError: as the store's, or what is stored does not belong together.
        """
        i = self.spec.index
        counts = stored.part(f"counts.{i}", 0, blocks)
        starts = torch.cat((counts.new_zeros(1, dtype=torch.int64), counts.cumsum(0)))
        found = stored.length(f"counts.{i}"), stored.length(f"representatives.{i}")
        if found != (blocks, int(starts[-1])):
            raise CorruptDataError(
                f"layer {i}: the session has {blocks:,} blocks with {int(starts[-1]):,} "
                f"representatives, but {found[0]:,} with {found[1]:,} are stored; open it with "
                "rebuild=True"
            )
        self.first, held = first, 0
        if self.shelves is not None:
            self.shelves.load(stored, blocks)
            held = self.shelves.stop if blocks - first > self.shelves.grid.above else 0
        keys = stored.part(f"representatives.{i}", int(starts[held]), int(starts[-1]))
        self.load(keys, counts[held:], held)
        self.first, self._oldest = first, 0
        if self.shelves is not None:
            self.shelves.catch_up(blocks, self._rows)

    @property
    def _end(self) -> int:
        return int(self._starts[self._n])

    @property
    def _own_bytes(self) -> int:
        there = self._there.bytes if self._there else 0
        return self._keys.nbytes + self._starts.nbytes + there

    def _changed(self, at: int) -> None:
        if self._there is not None:
            self._there.changed(at)

    def _rows(self, first: int, stop: int) -> IndexRows:
        own = slice(first - self._held, stop - self._held + 1)
        starts = self._starts[own]
        there = self._there.starts(self._starts, own.stop)[own] if self._there else None
        keys = self._keys[:, int(starts[0]) : int(starts[-1])]
        return IndexRows(keys, starts, self.spec.scaling, there)

    def _limit(self, shelves: Shelves) -> None:
        """How many pages may be in memory: what max_bytes leaves, at least those of one look-up; none
        while look-ups read all rows."""
        if self.max_bytes is None:
            return
        most = 0
        if self.grouped:
            one_look_up = shelves.grid.probe * self.spec.kv_heads
            room = self.max_bytes - self._own_bytes - shelves.resident_bytes
            room -= one_look_up * shelves.pages.page_bytes  # read out of the slots
            most = max(shelves.pages.slots_within(room), one_look_up)
        shelves.pages.most = most

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
