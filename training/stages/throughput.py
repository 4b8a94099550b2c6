"""How fast a stage trains: samples, positions and drawings a second, FLOP/s, and model FLOPs utilisation
(MFU).

MFU is what the mathematics of a step needs, over what the devices could compute meanwhile (arXiv:2204.02311);
its denominator is the dense bfloat16 peak of the GPU's data sheet, `planning.gpus`. On other devices FLOP/s
stand alone.
"""

import torch

from model.config import VargptConfig
from training.params import StageParams
from training.planning.flops import count_flops
from training.planning.gpus import peak_flops
from training.planning.gradients import trace
from training.planning.operations import Unit
from training.stages.stage_table import Stage
from training.stages.step_metrics import StepMetrics


class Throughput:
    """Metrics of one stage's speed, over all processes."""

    def __init__(
        self, config: VargptConfig, stage: Stage, params: StageParams, world_size: int, device: torch.device
    ) -> None:
        self.config, self.stage, self.params, self.world_size = config, stage, params, world_size
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = peak_flops(name)

    def metrics(self, step: StepMetrics) -> dict[str, float]:
        """Of one step, by the names that MLflow and Prometheus know."""
        if step.count is None:
            return {}
        seconds = max(step.seconds, 1e-9)
        found = {
            "samples_per_second": self.params.batch / seconds,
            "positions_per_second": step.count.positions / seconds,
            "drawings_per_second": step.count.drawings / seconds,
            "step_seconds": step.seconds,
            "data_seconds": step.data_seconds,
        }
        by_part = self._flops(step)
        for part, flops in {**by_part, "all": sum(by_part.values())}.items():
            per_second = flops / seconds / self.world_size
            found[f"teraflops/{part}"] = per_second / 1e12
            if self._peak:
                found[f"mfu/{part}"] = per_second / self._peak
        return found

    def _flops(self, step: StepMetrics) -> dict[str, float]:
        """Model FLOPs of a step by part, those that have any."""
        assert step.count is not None
        units = {
            Unit.POSITION: step.count.positions,
            Unit.SQUARED_POSITION: step.count.squares,
            Unit.TARGET: float(step.count.targets[0]),
            Unit.INPUT_IMAGE: step.count.pictures,
            Unit.DRAWN_IMAGE: step.count.drawings,
            Unit.DRAWING_PASS: float(step.count.drawings > 0),
        }
        encodes = not self.params.cached_codes
        traced = trace(self.config, self.stage.trains, self.params.lora, units, encodes=encodes)
        by_part = count_flops(traced, units, checkpoint_activations=self.params.checkpoint_activations)
        parts = {part.value.replace(" ", "_"): flops.model for part, flops in by_part.items()}
        return {part: flops for part, flops in parts.items() if flops}
