"""The engine of a recipe."""

from datetime import timedelta

from training.engines.engine import Engine
from training.engines.plain import PlainEngine
from training.params import Params, StageParams
from training.precision import training_device

# A peer that is gone is noticed after this long.
COLLECTIVE_TIMEOUT = timedelta(seconds=120)


def make_engine(stage: StageParams, params: Params) -> Engine:
    """The engine that a stage asks for; joins this process to its group."""
    device, clip_norm = training_device(), params.optimizer.clip_norm
    if stage.engine == "ddp":
        assert not stage.offload, "planning.dry_run.check_options refuses it"
        return PlainEngine(device, params.precision, clip_norm, COLLECTIVE_TIMEOUT)
    assert not stage.muon_lr, "planning.dry_run.check_options refuses it"
    # DeepSpeed takes seconds to import.
    from training.engines.zero import ZeroEngine

    number = int(stage.engine.removeprefix("zero"))
    return ZeroEngine(device, number, params.precision, clip_norm, COLLECTIVE_TIMEOUT, stage.offload)
