"""Learned feature maps, fitted layer by layer while text streams (attention transfer)."""

from __future__ import annotations

import torch
from torch import Tensor

from longmem.calibration.whole import WholeLayer
from longmem.config import MemoryConfig
from longmem.memory import AttentionCall, LayerSpec, Reading
from longmem.memory.layer import Part
from longmem.memory.window import LocalBuffer
from longmem.ops.compressive import EPS, Learned


class TransferLayer(WholeLayer):
    """Full attention that, at each pass, also moves the layer's map W ``[H_kv, D, D]`` towards it.

    LoLCATs (arXiv 2410.10254, section 3.1) trains feature maps by the squared difference between the
    output of softmax and of linear attention. Here both see the keys that left the query's window,
    since these are what memory holds; a query counts by the square of the share of its attention that
    goes there, which is how much of its output is at stake. Layers learn independently: the forward
    pass goes on with full attention.

    Args:
        spec: the layer.
        max_positions: trained positions.
        config: for the window.
        steps_per_token: Adam steps, spread over the text.
        queries: queries drawn per step.
        lr: learning rate.
    """

    def __init__(
        self,
        spec: LayerSpec,
        max_positions: int,
        config: MemoryConfig,
        steps_per_token: float,
        queries: int = 128,
        lr: float = 0.01,
    ) -> None:
        super().__init__(spec, max_positions)
        start = torch.eye(spec.dim, device=spec.device).repeat(spec.kv_heads, 1, 1)
        self.weight = start.requires_grad_()
        self._window, self._segment = config.n_local, config.window == "segment"
        self._steps_per_token, self._due, self._queries = steps_per_token, 0.0, queries
        self._optimizer = torch.optim.Adam([self.weight], lr=lr)
        self._dice = torch.Generator().manual_seed(spec.index)

    def begin(self) -> None:
        """Start a new context; what was learned stays."""
        self.local = LocalBuffer(self.spec)

    def _read_piece(self, part: Part, i: int, reading: Reading, call: AttentionCall) -> Tensor:
        out = super()._read_piece(part, i, reading, call)
        n_keys, n_new = len(self.local), part.q.shape[1]
        at = torch.arange(n_keys - n_new, n_keys)
        useful = at[self._near_from(at) > 0]
        self._due += self._steps_per_token * n_new
        while self._due >= 1 and len(useful):
            self._due -= 1
            drawn = torch.randperm(len(useful), generator=self._dice)[: self._queries]
            self._step(part, useful[drawn].to(self.spec.device), n_keys - n_new, call)
        return out

    def _near_from(self, at: Tensor) -> Tensor:
        """The first key in the window of queries `at`."""
        if self._segment:
            return at // self._window * self._window
        return (at - self._window + 1).clamp(min=0)

    def _step(self, part: Part, at: Tensor, first: int, call: AttentionCall) -> None:
        """One step on the queries `at` ``[n]``; the pass starts at `first`."""
        k, v = self.local.raw.float(), self.local.v.float()
        far = torch.arange(k.shape[1], device=at.device) < self._near_from(at)[:, None]  # [n, L]
        rows = at - first
        target, share = self._target(part.q_near[:, rows], v, at, far, call)
        with torch.enable_grad():
            features = Learned(self.weight)
            weights = _by_kv_head(features(part.q[:, rows]), k.shape[0]) @ features(k).mT
            weights = (_by_query(weights, len(at)) * far).flatten(1, 2)  # [H_kv, G * n, L]
            value = weights @ v / weights.sum(-1, keepdim=True).clamp(min=EPS)
            loss = ((value - target) * share).square().sum()
            loss = loss / (target * share).square().sum().clamp(min=EPS)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation for it
        self._optimizer.step()

    def _target(
        self, q: Tensor, v: Tensor, at: Tensor, far: Tensor, call: AttentionCall
    ) -> tuple[Tensor, Tensor]:
        """Softmax attention to the far keys ``[H_kv, G * n, D]``, and their share of all
        attention ``[H_kv, G * n, 1]``."""
        rot = self.local.rot.float()
        logits = _by_kv_head(q.float() * call.scaling, rot.shape[0]) @ rot.mT
        if call.softcap is not None:
            logits = call.softcap * torch.tanh(logits / call.softcap)
        future = torch.arange(rot.shape[1], device=at.device) > at[:, None]
        logits = _by_query(logits, len(at)).masked_fill(future, -torch.inf)
        weights = torch.softmax(logits, -1) * far
        weights = weights.flatten(1, 2)
        share = weights.sum(-1, keepdim=True)
        return weights @ v / share.clamp(min=EPS), share


def _by_kv_head(x: Tensor, kv_heads: int) -> Tensor:
    """``[H, n, D]`` -> ``[H_kv, G * n, D]``."""
    return x.reshape(kv_heads, -1, x.shape[-1])


def _by_query(x: Tensor, n: int) -> Tensor:
    """``[H_kv, G * n, L]`` -> ``[H_kv, G, n, L]``."""
    return x.view(x.shape[0], -1, n, x.shape[-1])
