"""Training a model to use the compressive memory: segment-level recurrence (Infini-attention).

    recurrent = SegmentRecurrent(model, segment=128, rule="linear")
    trainer = Trainer(recurrent, bptt=16)
    for ids, weights in batches:
        trainer.step(ids, weights)
    export(recurrent, "my-model", tokenizer)

Needs torch and transformers alone, and works on the models `longmem.Engine` takes.
"""

from longmem.training.export import export
from longmem.training.gate_report import GateReport
from longmem.training.model import SegmentRecurrent
from longmem.training.state import RecurrentState
from longmem.training.trainer import StepReport, Trainer

__all__ = ["GateReport", "RecurrentState", "SegmentRecurrent", "StepReport", "Trainer", "export"]
