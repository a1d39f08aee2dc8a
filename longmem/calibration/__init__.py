"""Gates of the compressive memory without training the model: one pass over sample text.

    engine = Engine.from_pretrained("my-model")
    config = engine.config.replace(compressive=Compressive(rule="linear"))
    found = calibrate(engine.model, engine.info, config, [ids], context=2048)
    save_gates("gates.safetensors", found.gates, engine.model, config.compressive)

What the command `longmem calibrate` runs; docs/calibration.md says what to expect of it.
"""

from longmem.calibration.calibrate import calibrate
from longmem.calibration.held_out import held_out_loss
from longmem.calibration.keep import Kept, keep_what_helps
from longmem.calibration.report import Calibration, LayerReport
from longmem.calibration.statistics import MixStatistics
from longmem.calibration.text import split

__all__ = [
    "Calibration",
    "Kept",
    "LayerReport",
    "MixStatistics",
    "calibrate",
    "held_out_loss",
    "keep_what_helps",
    "split",
]
