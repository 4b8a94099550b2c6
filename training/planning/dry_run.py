"""A stage without its training: finds what is wrong with a configuration before a GPU is paid, and plans the
rest.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from model.checkpoint import read_config
from model.config import VargptConfig, preset
from model.errors import UserError
from model.image_tokenizer import ImageTokenizer
from model.processing import VargptProcessor
from training.data.bad_records import BadRecordLog
from training.data.code_cache import open_codes
from training.data.dataset_index import INDEX
from training.data.prepared_data import DataFolders, open_mixture
from training.params import DatasetParams, Params, StageParams
from training.planning.gpus import gpu_named
from training.planning.plan import Assumptions, Plan, plan_stage
from training.registry.stage_folders import StageFolders

TOKENIZER = "image_tokenizer."


def dry_run(
    trains: Sequence[str],
    starts_from: str,
    params: Params,
    folders: StageFolders,
    needs_index: bool,
    gpu: str,
    processes: int,
) -> Plan:
    """The plan of a stage that can be trained.

    Args:
        trains: Paths of the modules that learn.
        starts_from: The stage whose model it starts from.
        needs_index: Whether datasets must have been checked, as at 7b, where each process would read all.
        processes: All of them, each with a GPU of this kind.

    Raises:
        UserError: names the parameter, the file or the package that is wrong or missing, the first one found.
    """
    name = folders.stage
    recipe, config = getattr(params, name), preset(params.preset)
    check_recipe(name, recipe, config, processes)
    check_packages(name, recipe)
    data = DataFolders(folders.prepared.parent, folders.outputs / "index")
    for dataset in recipe.mixture:
        check_dataset(name, dataset, data.root)
        if needs_index:
            check_index(name, dataset, data)
    check_start(name, starts_from, folders)
    if recipe.cached_codes:
        check_codes(name, recipe, folders.model_of(starts_from), folders.outputs / "codes")
    return plan_stage(name, trains, params, config, gpu_named(gpu), processes, Assumptions())


def check_recipe(name: str, recipe: StageParams, config: VargptConfig, processes: int) -> None:
    """Raise UserError for parameters of a stage that cannot work together, on so many processes."""
    check_batch(name, recipe.batch, processes)
    if recipe.batch % processes:
        raise UserError(f"{name}.batch {recipe.batch} must be a multiple of the {processes} processes")
    share = recipe.batch // processes
    if not recipe.pack_tokens and share > recipe.micro_batch and share % recipe.micro_batch:
        raise UserError(
            f"{name}.micro_batch {recipe.micro_batch} does not divide the {share} samples that each of"
            f" {processes} processes has of {name}.batch {recipe.batch}"
        )
    check_options(name, recipe, config)


def check_batch(name: str, batch: int, processes: int) -> None:
    """Raise UserError for a step of fewer samples than processes."""
    if batch < processes:
        raise UserError(f"{name}.batch {batch} gives {processes} processes no sample each")


def check_options(name: str, recipe: StageParams, config: VargptConfig) -> None:
    """Raise UserError for parameters that cannot work together, whatever the number of processes."""
    context = config.text_config.max_position_embeddings
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
        raise UserError(
            f"{name}.muon_lr must be 0 with engine {recipe.engine},"
            " which splits the matrices that Muon needs whole"
        )
    for field in ("code_corruption", "softness"):
        if recipe.cached_codes and (value := getattr(recipe, field)):
            raise UserError(f"{name}.{field} must be 0 with cached_codes, got {value}: it needs pixels")


def check_packages(name: str, recipe: StageParams) -> None:
    """Raise UserError for a package that a stage needs and this Python lacks."""
    needed = {
        "deepspeed": (recipe.engine != "ddp", f"engine {recipe.engine}", "deepspeed"),
        "peft": (recipe.lora is not None, "lora", "train"),
    }
    for package, (is_needed, field, extra) in needed.items():
        if is_needed and importlib.util.find_spec(package) is None:
            raise UserError(f"{name}.{field} needs {package}: pip install -e '.[{extra}]'")


def check_dataset(name: str, dataset: DatasetParams, root: Path) -> None:
    """Raise UserError for a dataset whose files are not there."""
    path = root / dataset.path
    if not path.exists() and not any(path.parent.glob(path.name)):
        raise UserError(f"{name}.mixture: there is no {path} of the dataset {dataset.name!r}")
    if dataset.image_root is not None and not (images := root / dataset.image_root).is_dir():
        raise UserError(f"{name}.mixture: there is no folder {images} with pictures of {dataset.name!r}")


def check_index(name: str, dataset: DatasetParams, folders: DataFolders) -> None:
    """Raise UserError for a dataset that was not checked, or that has changed since."""
    path = folders.index_of(dataset) / INDEX
    if not path.is_file():
        raise UserError(
            f"{name}.mixture: the dataset {dataset.name!r} has no index at {path}; run: vargpt data prepare"
        )
    open_mixture([dataset], folders, 0.0, 0, BadRecordLog())


def check_start(name: str, starts_from: str, folders: StageFolders) -> None:
    """Raise UserError where the model that a stage starts from is not there. Its weights are not read."""
    model = folders.model_of(starts_from)
    if not model.is_dir():
        raise UserError(f"{name} starts from {starts_from}, but there is no {model}; run {starts_from} first")
    read_config(model)


def check_codes(name: str, recipe: StageParams, model: Path, codes: Path) -> None:
    """Raise UserError where no codes of a model's image tokenizer are cached. Of its weights only these are
    read.
    """
    weights = {}
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(TOKENIZER)]  # noqa: SIM118 - no dictionary
            weights |= {name.removeprefix(TOKENIZER): file.get_tensor(name) for name in names}
    with torch.device("meta"):
        tokenizer = ImageTokenizer(read_config(model).image_tokenizer_config)
    if weights.keys() != tokenizer.state_dict().keys():
        raise UserError(f"{model} does not hold the whole image tokenizer")
    tokenizer.load_state_dict(weights, assign=True)
    processor = VargptProcessor.from_pretrained(model, local_files_only=True)
    try:
        open_codes(codes, tokenizer, processor, recipe)
    except UserError as error:
        raise UserError(f"{name}.cached_codes: {error}") from None
