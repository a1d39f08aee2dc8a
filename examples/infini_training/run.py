"""One training run: optimiser, rates, log, and a checkpoint to go on from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from infini_training.batches import Batch
from longmem.training import SegmentRecurrent, StepReport, Trainer

WARM_UP = 20


@dataclass(frozen=True)
class Rates:
    """Learning rates.

    Args:
        model: of all weights but these:
        features: of the feature maps and the norms of queries and keys, whose scale decides how fast
            the features of a token that does not matter vanish.
        gates: of the gates.
    """

    model: float = 5e-4
    features: float = 5e-3
    gates: float = 2e-2


class Run:
    """Trains to `steps` and keeps everything needed to go on in one file.

    Args:
        folder: receives log.jsonl and checkpoint.pt.
        recurrent: the model.
        rates: learning rates; they rise over 20 steps and fall to a tenth at the end.
        steps: how many.
    """

    def __init__(self, folder: Path, recurrent: SegmentRecurrent, rates: Rates, steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.recurrent, self.steps, self.step = folder, recurrent, steps, 0
        self.trainer = Trainer(recurrent, _optimizer(recurrent, rates))
        for group in self.trainer.optimizer.param_groups:
            group["base"] = group["lr"]
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def train(self, draw: Callable[[int], Batch]) -> None:
        """All steps that are left; `draw` makes the batch of a step."""
        while self.step < self.steps:
            started = time.perf_counter()
            batch = draw(self.step)
            self._set_rates()
            report = self.trainer.step(batch.ids, batch.weights, batch.repeats)
            self.step += 1
            self._log(report, batch, time.perf_counter() - started)
            if self.step % 25 == 0 or self.step == self.steps:
                self._save()

    def _set_rates(self) -> None:
        left = 1 - 0.9 * self.step / self.steps
        factor = min((self.step + 1) / WARM_UP, left)
        for group in self.trainer.optimizer.param_groups:
            group["lr"] = group["base"] * factor

    def _log(self, report: StepReport, batch: Batch, seconds: float) -> None:
        line = {
            "step": self.step,
            "loss": round(report.loss, 4),
            "right": round(report.right, 3),
            "gradient": round(report.gradient, 3),
            "repeats": max(batch.repeats.values(), default=1),
            "gates": {k: _rounded(v) for k, v in asdict(report.gates).items()},
            "seconds": round(seconds, 2),
            "at": time.strftime("%H:%M:%S"),
        }
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        new = self.folder / "checkpoint.new"
        parts = {
            "recurrent": self.recurrent.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict(),
            "step": self.step,
        }
        torch.save(parts, new)
        os.replace(new, self.checkpoint)

    def _load(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=True)
        self.recurrent.load_state_dict(saved["recurrent"])
        self.trainer.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]


def load_weights(recurrent: SegmentRecurrent, checkpoint: Path) -> None:
    """Weights and gates of another run's checkpoint."""
    saved = torch.load(checkpoint, weights_only=True)
    recurrent.load_state_dict(saved["recurrent"])


def _optimizer(recurrent: SegmentRecurrent, rates: Rates) -> torch.optim.Optimizer:
    groups = recurrent.parameter_groups(rates.model, rates.gates)
    named = recurrent.named_parameters()
    features = [p for name, p in named if name.endswith(("q_norm.weight", "k_norm.weight"))]
    features += list(recurrent.feature_weights)
    taken = {id(p) for p in features}
    for group in groups:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    groups.append({"params": features, "lr": rates.features, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def _rounded(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return [round(v, 3) for v in value]
    return round(value, 3) if isinstance(value, float) else value
