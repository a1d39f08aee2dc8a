"""Truncated back-propagation through segments."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from longmem.errors import ConfigError, InputError
from longmem.training.gate_report import GateReport
from longmem.training.model import SegmentRecurrent
from longmem.training.state import RecurrentState


@dataclass(frozen=True)
class StepReport:
    """What one training step saw.

    Args:
        loss: mean cross-entropy per unit of weight, in nats.
        right: share of the targets of weight > 0 that had the highest logit, by weight.
        gradient: norm of the gradient before clipping. If it is not finite, nothing was changed.
        gates: how far the gates are open.
    """

    loss: float
    right: float
    gradient: float
    gates: GateReport


class Trainer:
    """Trains a `SegmentRecurrent` model on batches of token ids.

    Args:
        recurrent: the model.
        optimizer: None makes AdamW with `recurrent.parameter_groups(lr, gate_lr)`.
        lr, gate_lr: learning rates of that AdamW.
        bptt: segments that a gradient reaches back through; None is all of a sequence. Memory for
            activations grows with it. Gates learn from it alone, so 16 or more.
        clip: largest norm of the gradient.

    Raises:
        ConfigError: `bptt` is no number of segments.
    """

    def __init__(
        self,
        recurrent: SegmentRecurrent,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        lr: float = 1e-4,
        gate_lr: float = 0.01,
        bptt: int | None = None,
        clip: float = 1.0,
    ) -> None:
        if bptt is not None and (type(bptt) is not int or bptt < 1):
            raise ConfigError(
                f"bptt = {bptt} is no number of segments; give 1 or more, or None for all"
            )
        self.recurrent, self.bptt, self.clip = recurrent, bptt, clip
        self.optimizer = optimizer or torch.optim.AdamW(recurrent.parameter_groups(lr, gate_lr))

    def step(
        self,
        ids: Tensor,
        weights: Tensor | None = None,
        repeats: dict[int, int] | None = None,
    ) -> StepReport:
        """One update.

        Args:
            ids: ``[B, T + 1]``; token t + 1 is the target of token t.
            weights: ``[B, T]`` of the targets, None for all 1. Logits are only computed where some
                row has a weight, so sparse weights make a step cheaper.
            repeats: segment number -> how many times it counts as read (`SegmentRecurrent.forward`).

        Raises:
            InputError: `ids` or `weights` has another shape.
        """
        if ids.dim() != 2 or ids.shape[1] < 2:
            raise InputError(
                f"ids is of shape {list(ids.shape)}; give [B, T + 1] token ids, T >= 1: each is the "
                "target of the one before"
            )
        weights = torch.ones(ids[:, 1:].shape, device=ids.device) if weights is None else weights
        if weights.shape != ids[:, 1:].shape:
            raise InputError(
                f"weights are of shape {list(weights.shape)}, but ids {list(ids.shape)} have targets "
                f"{list(ids[:, 1:].shape)}; give one weight per target"
            )
        total, loss, right = weights.sum(), 0.0, 0.0
        state: RecurrentState | None = None
        pending: list[Tensor] = []
        for start, stop, times, ends_window in self._passes(ids.shape[1] - 1, repeats or {}):
            part, wanted = slice(start, stop), weights[:, start:stop]
            keep = wanted.any(0).nonzero()[:, 0]
            logits, state = self.recurrent(ids[:, part], state, keep=keep, repeats=times)
            if len(keep):
                target = ids[:, start + 1 : stop + 1][:, keep]
                each = F.cross_entropy(logits.float().mT, target, reduction="none")
                pending.append((each * wanted[:, keep]).sum() / total)
                hit = (logits.argmax(-1) == target) * wanted[:, keep]
                right += float(hit.sum() / total)
            if ends_window:
                loss += _backward(pending)
                pending, state = [], state.detach()
        return self._update(loss, right)

    def _passes(self, length: int, repeats: dict[int, int]) -> list[tuple[int, int, int, bool]]:
        """``(first token, token after the last, repeats, whether back-propagation stops there)``."""
        segment = self.recurrent.segment
        n_segments = -(-length // segment)
        window = self.bptt or n_segments
        cuts = {0, n_segments, *range(0, n_segments, window)}
        for number in repeats:
            cuts |= {number, number + 1}
        edges = sorted(cut for cut in cuts if cut <= n_segments)
        return [
            (
                first * segment,
                min(last * segment, length),
                repeats.get(first, 1),
                last % window == 0 or last == n_segments,
            )
            for first, last in itertools.pairwise(edges)
        ]

    def _update(self, loss: float, right: float) -> StepReport:
        norm = torch.nn.utils.clip_grad_norm_(self.recurrent.parameters(), self.clip)
        if bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return StepReport(loss, right, float(norm), GateReport.of(self.recurrent.gate))


def _backward(losses: list[Tensor]) -> float:
    """Back-propagate the sum of a window's losses; its value."""
    if not losses:
        return 0.0
    total = torch.stack(losses).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return float(total.detach())
