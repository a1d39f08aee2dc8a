"""Full-attention layers: initial tokens, semantic blocks, pending tokens, window."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.blocks import BlockTable
from longmem.memory.compressive import CompressiveMemory
from longmem.memory.layer import LayerMark, LayerMemory, Part
from longmem.memory.lookup import Chosen, Lookup
from longmem.memory.placement import BlockTier
from longmem.memory.reading import AttentionCall, Choice, Reading, ReadSpan
from longmem.memory.recycled import RecycledSet
from longmem.memory.role import LayerRole
from longmem.memory.spec import LayerSpec
from longmem.memory.working_set import WorkingSet
from longmem.ops.working_set_attention import attend


class FullLayer(LayerMemory):
    """A full-attention layer: initial tokens, semantic blocks, pending tokens, window.

    Args:
        spec: the layer.
        config: the memory settings.
        table: where blocks end; shared by the session's layers.
        host_bytes: this layer's part of config.host_bytes.
        compressive: the layer's compressive memory, or None.
    """

    def __init__(
        self,
        spec: LayerSpec,
        config: MemoryConfig,
        table: BlockTable,
        host_bytes: int,
        compressive: CompressiveMemory | None = None,
    ) -> None:
        super().__init__(spec, config.n_local)
        self.table = table
        self.role = role = LayerRole.of(spec, config)
        self.lookup = Lookup(spec, config)
        self.tier = BlockTier(spec.index, host_bytes, role.attends)
        room = config.topk + config.contiguity if role.attends and not role.takes_all else 0
        self.working_set = WorkingSet(
            spec, table.n_init, room, config.block_size, config.far_positions == "ordered"
        )
        self.closed = -1
        """Closed blocks; -1 while not even the initial tokens have left the window."""
        self.first = 0
        """The oldest block that can be looked up; older ones were dropped (MemoryConfig.max_blocks)."""
        self.compressive = compressive
        self._by_lse = config.compressive is not None and config.compressive.mix == "lse"
        self._folds_dropped = self._by_lse and role.attends
        self.recycled: RecycledSet | None = None
        if config.topk_tokens is not None:
            self.recycled = RecycledSet(
                spec, config.topk_tokens, config.pool_tokens, config.n_local, config.repr_by
            )
        self._max_blocks = config.max_blocks
        self._mass_of = config.repr_by
        self.exported_blocks = 0
        """Blocks of which the representatives are stored."""
        self.fetched = 0
        """Blocks placed into the working set so far."""

    def _begin(self, whole: Part, reading: Reading) -> Sequence[int]:
        if self.role.looks_up:
            self.lookup.begin(whole.q_far, reading.spans)
        return super()._begin(whole, reading)

    def _end(self) -> None:
        self.lookup.end()

    def _read_piece(self, part: Part, i: int, reading: Reading, call: AttentionCall) -> Tensor:
        span = reading.spans[i]
        refreshes = span.voters > 0 and self._refreshes(part, i, span, reading)
        if refreshes:
            self._refresh(part.q_far[:, : span.voters], i, reading)
        recycled = self.recycled
        if recycled is None or (refreshes and span.voters == span.tokens > 1):
            return self._attend(part, call)
        if not refreshes:
            return (self._recycle if recycled.active else self._attend)(part, call)
        out = self._attend(part.tokens(0, span.voters), call, remember=span.voters == 1)
        if span.tokens == span.voters:
            return out
        rest = part.tokens(span.voters, span.tokens)
        after = (self._recycle if recycled.active else self._attend)(rest, call)
        return torch.cat((out, after), dim=1)  # only where a reply is read again

    def _attend(self, part: Part, call: AttentionCall, remember: bool = False) -> Tensor:
        """Attention to the whole working set; `remember` it for recycled steps."""
        local, far = self.local, self.working_set
        local.append(part.k, part.v, part.angles)
        attended = attend(
            part.q_near, part.q_far, far.k, far.v, local.raw, local.rot, local.v,
            n_local=self.n_local, scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
            far_length=far.length, mass_of=self._mass_of,
            want_lse=self._by_lse, want_weights=remember,
        )  # fmt: skip
        local.mass.add_(attended.mass)
        if self.recycled is not None and attended.weights is not None:
            self.recycled.refresh(attended.weights, far.k, far.v, far.length)
        return self._mix(attended.out, part.q, attended.lse)

    def _recycle(self, part: Part, call: AttentionCall) -> Tensor:
        """Attention to the best tokens of the last look-up, and to those read since."""
        assert self.recycled is not None
        self.local.append(part.k, part.v, part.angles)
        attended = self.recycled.attend(
            part.q_near, part.q_far, self.local, call, want_lse=self._by_lse
        )
        return self._mix(attended.out, part.q, attended.lse)

    def _mix(self, out: Tensor, q: Tensor, lse: Tensor | None) -> Tensor:
        return out if self.compressive is None else self.compressive.mix(out, q, lse)

    def _refreshes(self, part: Part, i: int, span: ReadSpan, reading: Reading) -> bool:
        """Whether this layer looks up at span i, or the layer does whose choices it shares."""
        done = reading.refreshed.setdefault(i, [])
        layer = self.spec.index
        if not (self.role.looks_up or self.role.takes_all):
            return self.role.follows is None or self.role.follows in done
        if reading.decide is not None:
            yes = reading.decide(layer, part.q_far[:, : span.voters])
        else:
            yes = span.layers is None or layer in span.layers
        if yes:
            done.append(layer)
        return yes

    def _refresh(self, q_far: Tensor, i: int, reading: Reading) -> None:
        """Close the blocks that are due, then choose and place the span's blocks."""
        self._close(self.table.closed(self.local.first + len(self.local)))
        if self.recycled is not None:
            self.recycled.clear()
        if self.role.takes_all:
            self._place_all()
            return
        if self.role.looks_up and self.closed > self.first:
            reading.chosen[i] = self._look_up(q_far, i, reading)
        self._place(reading.chosen.get(i, ((),)) if self.role.attends else ((),))

    def _look_up(self, q_far: Tensor, i: int, reading: Reading) -> Chosen:
        """The blocks of the span's far queries ``[H, T, D]``."""
        chosen, scores = self.lookup.choose(i, q_far)
        if reading.trace:
            blocks = sorted(set().union(*chosen))
            shares = self.lookup.shares(scores)[torch.tensor(blocks) - self.first]
            reading.choices.append(Choice(self.spec.index, tuple(blocks), tuple(shares.tolist())))
        return chosen

    def _place(self, chosen: Chosen) -> None:
        """Fill the working set."""
        held = {b: self.tier.get(b, *self.table.span(b)) for b in set().union(*chosen)}
        if len(chosen) == 1:
            self.working_set.set_blocks(chosen[0], [held[b] for b in chosen[0]])
        else:
            self.working_set.set_blocks_by_head(chosen, [[held[b] for b in own] for own in chosen])
        self.fetched += len(held)

    def _place_all(self) -> None:
        """Fill the working set with every block there is; those it holds already stay."""
        held = self.working_set.stands_for[0] if self.working_set.stands_for else ()
        if held and held[0] != self.first:
            self.working_set.clear()
            held = ()
        new = range(held[-1] + 1 if held else self.first, max(self.closed, 0))
        self.working_set.extend_blocks(new, [self.tier.get(b, *self.table.span(b)) for b in new])
        self.fetched += len(new)

    def _close(self, due: int) -> None:
        """Move initial tokens and blocks that are due out of the local buffer."""
        if self.closed < 0 <= due:
            n = self.table.n_init
            self.working_set.set_initial(self.local.raw[:, :n], self.local.v[:, :n])
            if self._by_lse:  # there, what is attended to must not count again
                self.local.drop(n)
            else:
                self._leave(n)
            self.closed = 0
        while self.closed < due:
            start, stop = self.table.span(self.closed)
            n = stop - start
            raw = self.local.raw[:, :n]
            if self.role.indexed:
                self.lookup.add(raw, self.local.mass[:, :n])
            self.tier.put(self.closed, torch.stack((raw, self.local.v[:, :n])))
            self._leave(n)
            self.closed += 1
        if self._max_blocks is not None:
            self._drop(max(0, self.closed - self._max_blocks))

    def _leave(self, n: int) -> None:
        """The n oldest tokens leave the local buffer."""
        if self.compressive is not None and not self._folds_dropped:
            self.compressive.fold(self.local.raw[:, :n], self.local.v[:, :n])
        self.local.drop(n)

    def _drop(self, first: int) -> None:
        """Blocks before `first` can be looked up no more."""
        while self.first < first:
            if self.compressive is not None and self._folds_dropped:
                k, v = self.tier.get(self.first, *self.table.span(self.first))
                self.compressive.fold(k, v)
            self.first += 1
        self._drop_front()

    def mark(self) -> LayerMark:
        """Where the layer stands now; K/V is not copied, only the attention sums are."""
        local = self.local
        mass, held = local.mass.clone(), self._mark_compressive()
        return LayerMark(local.first, len(local), local.place, mass, self.closed, held)

    def rewind(self, mark: LayerMark) -> None:
        if self.closed == mark.closed and self.local.place == mark.place:
            self.local.rewind(mark.length, mark.saved)
        else:
            k, v = self._rows_since(mark)
            self.load(k, v, mark.saved, mark.first, mark.place)
        self.truncate(mark.closed)
        self._rewind_compressive(mark)

    def truncate(self, closed: int) -> None:
        """Forget the blocks from `closed` on, and the initial tokens if it is -1."""
        blocks = max(closed, 0)
        self.lookup.truncate(blocks)
        self.tier.truncate(blocks)
        if closed < 0:
            k, v = self.working_set.initial
            self.working_set.set_initial(k[:, :0], v[:, :0])
        self.working_set.clear()
        if self.recycled is not None:
            self.recycled.clear()
        self.closed = closed
        if self._max_blocks is not None:
            self.first = max(0, closed - self._max_blocks)
            self._drop_front()

    def _drop_front(self) -> None:
        """Let look-ups choose among blocks from `first` on."""
        if self.role.indexed:
            self.lookup.drop_front(self.first)

    def commit(self) -> None:
        """What was read is durable: no `rewind` will go behind this point."""
        self.exported_blocks = max(self.closed, 0)
        self.tier.set_durable(self.exported_blocks)
        self.tier.forget(self.first)
        if self.role.indexed:
            self.lookup.release(self.first)

    def restore(self, closed: int, keys: Tensor | None, counts: Tensor | None) -> None:
        """Become a layer of `closed` blocks whose representatives are ``[M, H_kv, D]``, `counts`
        ``[N]`` of them per block."""
        if keys is not None and counts is not None:
            self.lookup.index.load(keys, counts)
        self.closed = closed
        self.exported_blocks = max(closed, 0)
        if self._max_blocks is not None:
            self.first = max(0, closed - self._max_blocks)
            if self.role.indexed:
                self.lookup.index.drop_front(self.first)

    @property
    def folded(self) -> tuple[int, int]:
        """Absolute positions (start, stop) of the tokens the compressive memory was given."""
        if self._folds_dropped:
            return self.table.edges[0], self.table.edges[self.first]
        return min(self.table.edges[0] if self._by_lse else 0, self.local.first), self.local.first

    def _rows_since(self, mark: LayerMark) -> tuple[Tensor, Tensor]:
        """Raw K/V ``[H_kv, mark.length, D]`` from mark.first on, some of it in blocks by now."""
        parts = []
        if mark.closed < 0 <= self.closed:
            parts.append(torch.stack(self.working_set.initial))
        for b in range(max(mark.closed, 0), max(self.closed, 0)):
            parts.append(self.tier.get(b, *self.table.span(b)).to(self.spec.device))
        parts.append(torch.stack((self.local.raw, self.local.v)))
        k, v = torch.cat(parts, dim=2)[:, :, : mark.length]
        return k, v
