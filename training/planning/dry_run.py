"""A stage without its training: finds what is wrong with a configuration before a GPU is paid, and plans the
rest.
"""

from collections.abc import Sequence
from pathlib import Path

from model.config import VargptConfig, preset
from model.errors import UserError
from training.params import DatasetParams, StageParams, load_params
from training.planning.gpus import gpu_named
from training.planning.plan import Assumptions, Plan, plan_stage


def dry_run(
    name: str,
    trains: Sequence[str],
    params_file: Path,
    size: str | None,
    root: Path,
    gpu: str,
    processes: int,
) -> Plan:
    """The plan of a stage that can be trained.

    Args:
        trains: Paths of the modules that learn.
        root: Where relative paths of datasets start.
        processes: All of them, each with a GPU of this kind.

    Raises:
        UserError: names the parameter or the file that is wrong, the first one found.
    """
    params = load_params(params_file, size)
    recipe, config = getattr(params, name), preset(params.preset)
    check_recipe(name, recipe, config, processes)
    for dataset in recipe.mixture:
        check_dataset(name, dataset, root)
    return plan_stage(name, trains, params, config, gpu_named(gpu), processes, Assumptions())


def check_recipe(name: str, recipe: StageParams, config: VargptConfig, processes: int) -> None:
    """Raise UserError for parameters of a stage that cannot work together."""
    context = config.text_config.max_position_embeddings
    if recipe.batch < processes:
        raise UserError(f"{name}.batch {recipe.batch} gives {processes} processes no sample each")
    if recipe.batch % processes:
        raise UserError(f"{name}.batch {recipe.batch} must be a multiple of the {processes} processes")
    share = recipe.batch // processes
    if not recipe.pack_tokens and share > recipe.micro_batch and share % recipe.micro_batch:
        raise UserError(
            f"{name}.micro_batch {recipe.micro_batch} does not divide the {share} samples that each of"
            f" {processes} processes has of {name}.batch {recipe.batch}"
        )
    if recipe.max_tokens > context:
        raise UserError(f"{name}.max_tokens {recipe.max_tokens} exceeds the model's context of {context}")
    if 0 < recipe.pack_tokens < recipe.max_tokens:
        raise UserError(
            f"{name}.pack_tokens {recipe.pack_tokens} has no room for a sample of"
            f" max_tokens {recipe.max_tokens}"
        )
    if recipe.offload and recipe.engine == "ddp":
        raise UserError(f"{name}.offload needs engine zero1, zero2 or zero3, not ddp")
    if recipe.muon_lr and recipe.engine != "ddp":
        raise UserError(f"{name}.muon_lr must be 0 with engine {recipe.engine}, which splits matrices")


def check_dataset(name: str, dataset: DatasetParams, root: Path) -> None:
    """Raise UserError for a dataset whose files are not there."""
    path = root / dataset.path
    if not path.exists() and not any(path.parent.glob(path.name)):
        raise UserError(f"{name}.mixture: there is no {path} of the dataset {dataset.name!r}")
    if dataset.image_root is not None and not (images := root / dataset.image_root).is_dir():
        raise UserError(f"{name}.mixture: there is no folder {images} with pictures of {dataset.name!r}")
