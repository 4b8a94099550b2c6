"""How fast a stage trains: samples, positions, pictures and drawings a second, FLOP/s, and model FLOPs
utilisation (MFU).

MFU is what the mathematics of a step needs, over what the devices could compute meanwhile (arXiv:2204.02311);
its denominator is the dense bfloat16 peak of the GPU's data sheet, `planning.gpus`. On other devices FLOP/s
stand alone.
"""

import resource

import torch

from model.config import VargptConfig
from training.params import StageParams
from training.planning.flops import count_flops
from training.planning.gpus import peak_flops
from training.planning.gradients import trace
from training.planning.operations import Unit
from training.stages.stage_table import Stage
from training.stages.step_metrics import StepMetrics

MFU_DEVICE_TAG, MFU_PEAK_TAG = "vargpt.mfu_device", "vargpt.mfu_peak_teraflops"
KIBIBYTE = 1024


class Throughput:
    """Metrics of one stage's speed, over all processes."""

    def __init__(
        self, config: VargptConfig, stage: Stage, params: StageParams, world_size: int, device: torch.device
    ) -> None:
        self.config, self.stage, self.params, self.world_size = config, stage, params, world_size
        self._device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = peak_flops(self._device_name)

    def denominator(self) -> dict[str, str]:
        """What MFU is measured by, as tags of the run: the device and its peak; empty where MFU is not."""
        if self._peak is None:
            return {}
        return {MFU_DEVICE_TAG: self._device_name, MFU_PEAK_TAG: f"{self._peak / 1e12:g}"}

    def metrics(self, step: StepMetrics) -> dict[str, float]:
        """Of one step, by the names that MLflow and Prometheus know."""
        if step.count is None:
            return {}
        seconds = max(step.seconds, 1e-9)
        found = {
            "samples_per_second": self.params.batch / seconds,
            "positions_per_second": step.count.positions / seconds,
            # Read and drawn.
            "pictures_per_second": (step.count.pictures + step.count.drawings) / seconds,
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


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory that this process has had: of the GPU, or resident where it computes on the CPU."""
    if device.type == "cuda":
        return {"gpu_peak_gigabytes": torch.cuda.max_memory_allocated() / 1e9}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTE
    return {"peak_memory_gigabytes": resident / 1e9}
