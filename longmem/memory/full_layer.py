"""Full-attention layers: how they read, look up and attend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longmem.config import MemoryConfig
from longmem.memory.block_layer import BlockLayer
from longmem.memory.blocks import BlockTable
from longmem.memory.compressive import CompressiveMemory
from longmem.memory.layer import Part
from longmem.memory.lookup import Chosen
from longmem.memory.placement import BlockTier
from longmem.memory.reading import AttentionCall, Choice, Reading, ReadSpan
from longmem.memory.spec import LayerSpec
from longmem.ops.step_attention import StepKeys
from longmem.ops.working_set_attention import attend


class FullLayer(BlockLayer):
    """A full-attention layer: initial tokens, semantic blocks, pending tokens, window.

    Args:
        spec: the layer.
        config: the memory settings.
        table: where blocks end; shared by the session's layers.
        tier: where its closed blocks lie.
        compressive: the layer's compressive memory, or None.
    """

    def __init__(
        self,
        spec: LayerSpec,
        config: MemoryConfig,
        table: BlockTable,
        tier: BlockTier,
        compressive: CompressiveMemory | None = None,
    ) -> None:
        super().__init__(spec, config, table, tier, compressive)
        self.followers: list[FullLayer] = []
        """The layers that share this one's choices."""
        self.takes_steps = self.recycled is None
        self.fetched = 0
        """Blocks chosen for the working set so far."""

    def begin_step(self, q_far: Tensor, reading: Reading) -> None:
        """Look up, if this layer does so at this step."""
        (span,) = reading.spans
        if span.voters and self._refreshes(q_far, 0, span, reading):
            if self.role.looks_up:
                self.lookup.begin(q_far, reading.spans)
            self._refresh(q_far, 0, reading)
            self.lookup.end()

    def step_keys(self) -> StepKeys:
        """The whole working set."""
        local, far = self.local, self.working_set
        n = len(local)
        pending = max(0, n - self.n_local)
        return StepKeys(
            far.columns,
            far.v,
            local.raw_columns(0, pending),
            local.rot_columns(pending, n),
            local.v,
            far.unused,
        )

    def end_step(self, out: Tensor, q: Tensor, mass: Tensor | None, lse: Tensor | None) -> Tensor:
        """Keep what tokens of the window received, and read the compressive memory."""
        if mass is not None:
            n, far = len(self.local), len(self.working_set)
            pending = max(0, n - self.n_local)
            stop = n - (self.mass_of == "logits")  # a token does not follow itself
            self.local.mass[:, pending:stop].add_(mass[:, far + pending : far + stop])
        return super().end_step(out, q, None, lse)

    def _begin(self, whole: Part, reading: Reading) -> Sequence[int]:
        if self.role.looks_up:
            self.lookup.begin(whole.q_far, reading.spans)
        return super()._begin(whole, reading)

    def _end(self) -> None:
        self.lookup.end()

    def _read_piece(self, part: Part, i: int, reading: Reading, call: AttentionCall) -> Tensor:
        span = reading.spans[i]
        voting = part.q_far[:, : span.voters]
        refreshes = span.voters > 0 and self._refreshes(voting, i, span, reading)
        if refreshes:
            self._refresh(voting, i, reading)
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
        local.extend(part.k, part.k_rot, part.v)
        attended = attend(
            part.q_near, part.q_far, far.k, far.v, local.raw, local.rot, local.v,
            n_local=self.n_local, scaling=call.scaling, softcap=call.softcap, sinks=call.sinks,
            far_length=far.length, mass_of=self.mass_of,
            want_lse=self.want_lse, want_weights=remember,
        )  # fmt: skip
        if attended.mass is not None:
            local.mass.add_(attended.mass)
        if self.recycled is not None and attended.weights is not None:
            self.recycled.refresh(attended.weights, far.k, far.v, far.length)
        return self._mix(attended.out, part.q, attended.lse)

    def _recycle(self, part: Part, call: AttentionCall) -> Tensor:
        """Attention to the best tokens of the last look-up, and to those read since."""
        assert self.recycled is not None
        self.local.extend(part.k, part.k_rot, part.v)
        attended = self.recycled.attend(
            part.q_near, part.q_far, self.local, call, want_lse=self.want_lse
        )
        return self._mix(attended.out, part.q, attended.lse)

    def _mix(self, out: Tensor, q: Tensor, lse: Tensor | None) -> Tensor:
        return out if self.compressive is None else self.compressive.mix(out, q, lse)

    def _refreshes(self, q_far: Tensor, i: int, span: ReadSpan, reading: Reading) -> bool:
        """Whether this layer looks up at span i, or the layer does whose choices it shares."""
        done = reading.refreshed.setdefault(i, [])
        layer = self.spec.index
        if not (self.role.looks_up or self.role.takes_all):
            return self.role.follows is None or self.role.follows in done
        if reading.decide is not None:
            yes = reading.decide(layer, q_far)
        else:
            yes = span.layers is None or layer in span.layers
        if yes:
            done.append(layer)
        return yes

    def _refresh(self, q_far: Tensor, i: int, reading: Reading) -> None:
        """Close the blocks that are due, then choose and place the span's blocks."""
        self.close(self.table.closed(self.local.first + len(self.local)))
        if self.recycled is not None:
            self.recycled.clear()
        if self.role.takes_all:
            self._place_all()
            return
        if self.role.looks_up and self.closed > self.first:
            reading.chosen[i] = self._look_up(q_far, i, reading)
            for layer in self.followers:
                layer.prefetch(reading.chosen[i])
        self._place(reading.chosen.get(i, ((),)) if self.role.attends else ((),))
        if not self.role.looks_up and i + 1 in reading.chosen:
            self.prefetch(reading.chosen[i + 1])

    def prefetch(self, chosen: Chosen) -> None:
        """Begin to read the chosen blocks that lie in the store alone."""
        blocks = sorted(set().union(*chosen))
        held = self.working_set.holds(blocks, self.tier.settled)
        self.tier.prefetch([block for block in blocks if block not in held])

    def _look_up(self, q_far: Tensor, i: int, reading: Reading) -> Chosen:
        """The blocks of the span's far queries ``[H, T, D]``."""
        if not reading.trace:
            return self.lookup.choose(i, q_far)[0]
        chosen, all_shares = self.lookup.choose_and_share(i, q_far)
        blocks = sorted(set().union(*chosen))
        shares = all_shares[torch.tensor(blocks) - self.first]
        reading.choices.append(Choice(self.spec.index, tuple(blocks), tuple(shares.tolist())))
        return chosen

    def placed(self, blocks: tuple[int, ...]) -> None:
        """A kernel chose and placed these blocks for all heads: `_place` without its copies."""
        spans = [self.table.span(block) for block in blocks]
        self.tier.used(blocks)
        tokens = [stop - start for start, stop in spans]
        self.working_set.stand_for(blocks, tokens, self.tier.settled)
        self.fetched += len(blocks)

    def _place(self, chosen: Chosen) -> None:
        """Fill the working set; blocks it holds already are not asked for again."""
        blocks = sorted(set().union(*chosen))
        settled = self.tier.settled
        held = self.working_set.holds(blocks, settled) if len(chosen) == 1 else set()
        missing = [block for block in blocks if block not in held]
        found = dict(zip(missing, self.tier.get_many(missing), strict=True))
        self.tier.touch(sorted(held))
        if len(chosen) == 1:
            self.working_set.set_blocks(chosen[0], [found.get(b) for b in chosen[0]], settled)
        else:
            self.working_set.set_blocks_by_head(chosen, [[found[b] for b in own] for own in chosen])
        self.fetched += len(blocks)

    def _place_all(self) -> None:
        """Fill the working set with every block there is; those it holds already stay."""
        settled = self.tier.settled
        self.working_set.drop_changed(settled)
        held = self.working_set.stands_for[0] if self.working_set.stands_for else ()
        if held and held[0] != self.first:
            self.working_set.clear()
            held = ()
        new = range(held[-1] + 1 if held else self.first, max(self.closed, 0))
        self.working_set.extend_blocks(new, self.tier.get_many(new), settled)
        self.fetched += len(new)
