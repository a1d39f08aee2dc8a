"""The tokens of the last refresh that recycled steps attend to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import max_pool1d

from longmem.memory.reading import AttentionCall
from longmem.memory.spec import LayerSpec
from longmem.memory.window import LocalBuffer
from longmem.ops.recycled_attention import attend_recycled
from longmem.ops.working_set_attention import Attended, MassOf

_FAR, _EMPTY = -1, -2


@dataclass(frozen=True, eq=False)
class _Refresh:
    """What the last refresh left: weights ``[H_kv, G, F + L]`` and the far keys and values."""

    weights: Tensor
    far_k: Tensor
    far_v: Tensor
    far_length: Tensor | None


class RecycledSet:
    """Per KV head the `tokens` highest-scoring tokens of one layer's last refresh (Recycled Attention,
    arXiv 2411.05787, section 3), and the tokens that came since.

    Tokens lie in the order of their scores, lowest first, new ones behind them: dropping the lowest
    moves the start by one, in all heads alike. A token that crosses the window's edge meanwhile is
    met by the far query from then on, as it would be in the whole working set.

    Args:
        spec: the layer.
        tokens: K, tokens held per KV head.
        pool: neighbours whose scores are max-pooled, in tokens; odd.
        n_local: window in tokens.
        mass_of: what the local buffer's sums count.
    """

    def __init__(
        self,
        spec: LayerSpec,
        tokens: int,
        pool: int,
        n_local: int,
        mass_of: MassOf = "attention",
    ) -> None:
        self._spec = spec
        self._tokens, self._pool, self._n_local = tokens, pool, n_local
        self._mass_of: MassOf = mass_of
        self._refresh: _Refresh | None = None
        self._lo = self._hi = 0
        self._first = 0
        self._ragged = False
        self._allocate(0)

    @property
    def active(self) -> bool:
        """Whether there is a refresh to recycle."""
        return self._refresh is not None or self._hi > 0

    @property
    def bytes(self) -> int:
        """Bytes allocated; nothing before the first recycled step."""
        buffers = (self._k, self._v, self._far, self._at)
        return sum(buffer.nbytes for buffer in buffers)

    def __len__(self) -> int:
        return self._hi - self._lo

    def clear(self) -> None:
        """Forget the last refresh; the next recycled step has to attend to the whole working set."""
        self._refresh = None
        self._lo = self._hi = 0

    def refresh(
        self, weights: Tensor, far_k: Tensor, far_v: Tensor, far_length: Tensor | None = None
    ) -> None:
        """Remember a refresh. Tokens are gathered when a recycled step first asks for them: many
        refreshes are followed by none.

        Args:
            weights: ``[H_kv, G, F + L]`` attention of the refresh's last query.
            far_k, far_v: ``[H_kv, F, D]`` initial tokens and blocks, which must stay as they are until
                the set is cleared or refreshed.
            far_length: ``[H_kv]`` how many of them each KV head has; None: all F.
        """
        self.clear()
        self._refresh = _Refresh(weights, far_k, far_v, far_length)

    def attend(
        self,
        q_near: Tensor,
        q_far: Tensor,
        local: LocalBuffer,
        call: AttentionCall,
        want_lse: bool = False,
    ) -> Attended:
        """Recycled steps of the last T tokens of `local`, one by one, as if decoded so.

        Args:
            q_near, q_far: ``[H, T, D]`` queries rotated at their positions, and at n_local.
            local: the layer's buffer, the T tokens appended, nothing dropped since the refresh; its
                attention sums grow by what the steps add.
            call: the layer's attention settings.
            want_lse: whether `Attended.lse` is returned.

        Returns:
            `Attended` with out ``[H, T, D]``, mass ``[H_kv, L]`` as added to `local` (None where it
            keeps none), lse ``[H, T]``.
        """
        if self._refresh is not None:
            self._gather(self._refresh, local)
            self._refresh = None
        assert self._hi and self._first == local.first, "no refresh, or tokens dropped since"
        n_query = q_near.shape[1]
        before = len(local) - n_query
        mass = torch.zeros_like(local.mass) if local.keeps_mass else None
        outs, lses = [], []
        for t in range(n_query):
            self._append(local, before + t)
            done = self._step(q_near[:, t], q_far[:, t], call, want_lse)
            if mass is not None and done.mass is not None:
                at = self._at[:, self._lo : self._hi].clamp(min=0)
                mass.scatter_add_(1, at, done.mass)  # of far and empty places the mass is zero
            outs.append(done.out)
            lses.append(done.lse)
        if mass is not None:
            local.mass.add_(mass)
        lse = torch.cat([each for each in lses if each is not None], 1) if want_lse else None
        return Attended(torch.cat(outs, 1), mass, lse)

    def _step(self, q_near: Tensor, q_far: Tensor, call: AttentionCall, want_lse: bool) -> Attended:
        held = slice(self._lo, self._hi)
        return attend_recycled(
            q_near, q_far, self._k[:, held], self._v[:, held], self._far[:, held],
            scaling=call.scaling, empty=self._at[:, held] == _EMPTY if self._ragged else None,
            softcap=call.softcap, sinks=call.sinks, mass_of=self._mass_of, want_lse=want_lse,
        )  # fmt: skip

    def _append(self, local: LocalBuffer, j: int) -> None:
        """Take in local token j: the lowest-scoring one makes room, another may leave the window."""
        if len(self) >= self._tokens:
            self._lo += 1
        if self._hi == self._k.shape[1]:
            self._to_front()
        self._cross(local, j - self._n_local)
        at = self._hi
        self._k[:, at], self._v[:, at] = local.rot[:, j], local.v[:, j]
        self._far[:, at].zero_()
        self._at[:, at].fill_(j)
        self._hi += 1

    def _cross(self, local: LocalBuffer, j: int) -> None:
        """Local token j is beyond the window from now on: where held, it gets its raw key."""
        if j < 0 or not len(self):
            return
        held = self._at[:, self._lo : self._hi] == j
        column = self._lo + held.int().argmax(1, keepdim=True)  # [H_kv, 1]
        found = held.any(1, keepdim=True)
        rows = column[..., None].expand(-1, -1, self._k.shape[2])
        raw = local.raw[:, j : j + 1]
        self._k.scatter_(1, rows, torch.where(found[..., None], raw, self._k.gather(1, rows)))
        self._far.scatter_(1, column, found | self._far.gather(1, column))

    def _gather(self, last: _Refresh, local: LocalBuffer) -> None:
        """Hold the K best tokens of a refresh; local tokens beyond those it saw are new."""
        n_far, n_all = last.far_k.shape[1], last.weights.shape[2]
        n_local = n_all - n_far
        scores = self._scores(last)
        n = min(self._tokens, n_all)
        index = scores.topk(n, dim=1).indices.flip(1)  # [H_kv, n], the lowest first
        pending = max(0, n_local - self._n_local)
        if self._k.shape[1] < n + 1:
            self._allocate(n)
        self._lo, self._hi, self._first = 0, n, local.first
        beyond, window = slice(0, pending), slice(pending, n_local)
        self._take(index, last.far_k, last.far_v)
        self._take(index - n_far, local.raw[:, beyond], local.v[:, beyond])
        self._take(index - n_far - pending, local.rot[:, window], local.v[:, window])
        self._far[:, :n] = index < n_far + pending
        self._at[:, :n] = (index - n_far).clamp_(min=_FAR)
        self._ragged = last.far_length is not None
        if self._ragged:
            self._at[:, :n].masked_fill_(scores.gather(1, index).isneginf(), _EMPTY)

    def _take(self, index: Tensor, k: Tensor, v: Tensor) -> None:
        """Fill the places whose `index` ``[H_kv, n]`` is a row of keys and values ``[H_kv, N, D]``. All
        places are read and written, so that nobody has to know how many those are."""
        n, rows = index.shape[1], k.shape[1]
        if not rows:
            return
        filled = ((index >= 0) & (index < rows))[..., None]
        row = index.clamp(0, rows - 1)
        head = torch.arange(len(index), device=index.device)[:, None]
        for held, source in ((self._k[:, :n], k), (self._v[:, :n], v)):
            torch.where(filled, source[head, row], held, out=held)

    def _scores(self, last: _Refresh) -> Tensor:
        """``[H_kv, F + L]``; places that hold no token are below all others."""
        scores = last.weights.amax(1)
        if self._pool > 1:
            scores = max_pool1d(scores, self._pool, stride=1, padding=self._pool // 2)
        if last.far_length is not None:
            far = torch.arange(last.far_k.shape[1], device=scores.device)
            unused = far >= last.far_length[:, None]
            scores[:, : far.numel()].masked_fill_(unused, float("-inf"))
        return scores

    def _to_front(self) -> None:
        """Make room behind the tokens held: in place, or in larger buffers while there are few."""
        held = slice(self._lo, self._hi)
        old = [x[:, held].clone() for x in (self._k, self._v, self._far, self._at)]
        n = len(self)
        if self._k.shape[1] < n + n // 8 + 8:
            self._allocate(min(2 * n, self._tokens))
        for target, source in zip((self._k, self._v, self._far, self._at), old, strict=True):
            target[:, :n] = source
        self._lo, self._hi = 0, n

    def _allocate(self, tokens: int) -> None:
        """Buffers for `tokens` and a quarter more, so that moving to the front is rare."""
        spec = self._spec
        shape = (spec.kv_heads, tokens + tokens // 4 + 16 if tokens else 0)
        self._k = torch.zeros(*shape, spec.dim, dtype=spec.dtype, device=spec.device)
        self._v = torch.zeros_like(self._k)
        self._far = torch.zeros(shape, dtype=torch.bool, device=spec.device)
        self._at = torch.zeros(shape, dtype=torch.int64, device=spec.device)
