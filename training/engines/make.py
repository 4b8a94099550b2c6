"""The engine of a recipe."""

from datetime import timedelta

from model.errors import UserError
from training.engines.engine import Engine
from training.engines.plain import PlainEngine
from training.params import Params, StageParams
from training.precision import training_device

# A peer that is gone is noticed after this long.
COLLECTIVE_TIMEOUT = timedelta(seconds=120)


def make_engine(stage: StageParams, params: Params) -> Engine:
    """The engine that a stage asks for; joins this process to its group.

    Raises UserError for an optimizer that the engine cannot share.
    """
    device, clip_norm = training_device(), params.optimizer.clip_norm
    if stage.engine == "ddp":
        if stage.offload:
            raise UserError("offload needs engine zero1, zero2 or zero3, not ddp")
        return PlainEngine(device, params.precision, clip_norm, COLLECTIVE_TIMEOUT)
    if stage.muon_lr:
        raise UserError(
            f"muon_lr must be 0 with engine {stage.engine}, which splits the matrices that Muon needs whole"
        )
    # DeepSpeed takes seconds to import.
    from training.engines.zero import ZeroEngine

    number = int(stage.engine.removeprefix("zero"))
    return ZeroEngine(device, number, params.precision, clip_norm, COLLECTIVE_TIMEOUT, stage.offload)
