"""The batch of one step of a run again, sample by sample: which of them its loss comes from."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from model.errors import UserError
from model.losses import token_counts
from training.checkpoints import step_folders
from training.checkpoints.fragments import Fragments
from training.data.bad_records import BadRecordLog
from training.data.batch_loader import BatchLoader
from training.data.code_cache import open_codes
from training.data.content_hashes import samples_sha256
from training.data.prepared_data import DataFolders, open_mixture
from training.precision import training_device
from training.registry.stage_folders import StageFolders
from training.runs.recorded_run import RecordedRun, recorded_run
from training.stages.stage_loss import StageLoss, mean_losses, on_device
from training.stages.stage_table import freeze_for, stage_named
from training.stages.trainer import WEIGHT


@dataclass(frozen=True)
class Replay:
    """The losses of a step's samples.

    Args:
        weights_of_step: Steps that the weights had learned for; 0 when no checkpoint before was left.
        losses: Of each sample, by record: mean nats per token of text, image and each image scale.
    """

    run_id: str
    step: int
    weights_of_step: int
    losses: dict[str, dict[str, float]]


def replay(run: str, step: int, tracking_uri: str, folders: StageFolders) -> Replay:
    """Compute the losses of the samples that all processes together drew at a step, counted from 0.

    Weights are those of the newest checkpoint before the step that is left, in float32 and without dropout.

    Raises:
        UserError: the run is not known, has no such step, or data and starting weights are not its own.
        ConnectionError: MLflow cannot be reached.
    """
    recorded = recorded_run(run, tracking_uri)
    folders = replace(folders, stage=recorded.stage)
    stage = getattr(recorded.params, recorded.stage)
    if not 0 <= step < stage.steps:
        raise UserError(f"step must be 0 to {stage.steps - 1}, got {step}")
    if (now := folders.start_sha256(recorded.parent_stage)) != recorded.parent_weights_sha256:
        raise UserError(
            f"the weights of {recorded.parent_stage} here are {now}, "
            f"run {recorded.run_id} had {recorded.parent_weights_sha256}: dvc checkout"
        )
    return _replay(recorded, step, folders)


def _replay(recorded: RecordedRun, step: int, folders: StageFolders) -> Replay:
    params, stage = recorded.params, getattr(recorded.params, recorded.stage)
    bad_records = BadRecordLog()
    data = DataFolders(folders.prepared.parent, folders.outputs / "index")
    mixture = open_mixture(stage.mixture, data, params.data.held_out, params.seed, bad_records)
    model, processor = folders.load(recorded.parent_stage)
    codes = open_codes(folders.outputs / "codes", model.image_tokenizer, processor, stage)
    loader = BatchLoader(
        mixture,
        processor,
        model.config.image_tokenizer_config,
        stage,
        params.seed,
        bad_records,
        params.data.bad_record_share,
        codes,
    )
    start, content = folders.start_sha256(recorded.parent_stage), samples_sha256(mixture.datasets)
    steps = step_folders.committed_steps(folders.folder / folders.identity(params, start, content))
    before = [path for path in steps if step_folders.step_of(path) <= step]
    torch.manual_seed(params.seed)
    learning = freeze_for(model, stage_named(recorded.stage), stage.lora)
    if before:
        _load(learning, Fragments(before[0]))
    device = training_device()
    loss = StageLoss(model.float().eval().to(device), stage)
    losses = {}
    with torch.no_grad():
        for record, batch in loader.one_by_one(step):
            counts = token_counts(batch, model.config.scales)
            losses[record] = mean_losses(loss(on_device(batch, device)).cpu(), counts)
    return Replay(recorded.run_id, step, step_folders.step_of(before[0]) if before else 0, losses)


@torch.no_grad()
def _load(learning: list[tuple[str, nn.Parameter]], fragments: Fragments) -> None:
    for name, parameter in learning:
        parameter.copy_(fragments.whole(WEIGHT, name, parameter.shape))
