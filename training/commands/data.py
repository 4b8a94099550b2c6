"""The faces of `vargpt data`: options in, one function called, facts out.

Heavy imports wait inside the functions, so that a mistake is told at once.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from training.commands.options import OF_DIGITS, AsJson, DataDir, Outputs, ParamsFile, Size, print_result

if TYPE_CHECKING:
    from model.processing import VargptProcessor
    from training.params import DatasetParams, Params

INDEX_SUMMARY = "index.json"


def prepare(
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    data: DataDir = Path("data"),
    out: Annotated[Path, typer.Option(help="Where prepared data goes.")] = Path("prepared"),
    outputs: Outputs = Path("outputs"),
    as_json: AsJson = False,
) -> None:
    """Make ready what training reads: render scenes of digits, or check every record and picture once."""
    from training.params import load_params

    chosen = load_params(params, size)
    if chosen.size in OF_DIGITS:
        facts = _render_digits(chosen, data, out)
    else:
        facts = _check_datasets(chosen, out, outputs)
    total = sum(written["records"] for written in facts.values())
    print_result(facts, f"{out}: {total} records", as_json)


def _render_digits(params: "Params", data: Path, out: Path) -> dict[str, Any]:
    # It takes seconds to import.
    from training.digits.prepare import prepare

    summary = prepare(params.prepare, params.seed, data, out)
    return {name: dataclasses.asdict(written) for name, written in summary.items()}


def _check_datasets(params: "Params", out: Path, outputs: Path) -> dict[str, Any]:
    from training.data.prepared_data import DataFolders, index_datasets

    indexed = index_datasets(
        _datasets(params),
        DataFolders(out.parent, outputs / "index"),
        _published_processor(params),
        params.data.workers,
        params.data.bad_record_share,
    )
    facts = {
        name: {"records": len(index), "bad": len(index.bad_records()), "sha256": index.sha256()}
        for name, index in indexed.items()
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / INDEX_SUMMARY).write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _datasets(params: "Params", needs_codes: bool = False) -> list["DatasetParams"]:
    """The datasets of the pipeline's stages, or of those that read cached codes."""
    stages = (params.stage1, params.stage2, params.stage3)
    return [dataset for stage in stages if stage.cached_codes or not needs_codes for dataset in stage.mixture]


def _published_processor(params: "Params") -> "VargptProcessor | None":
    """The processor of published weights, by which lengths are counted; None without such weights."""
    from model.config import preset
    from model.processing import VargptProcessor
    from model.text_tokenizer import published_text_tokenizer

    folder = params.weights.vargpt or params.weights.llava
    if folder is None:
        return None
    config = preset(params.preset)
    return VargptProcessor.for_config(config, published_text_tokenizer(Path(folder), config))


def encode(
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    outputs: Outputs = Path("outputs"),
    artifacts: Annotated[Path, typer.Option(help="Where the summary goes.")] = Path("artifacts"),
    batch: Annotated[int, typer.Option(min=1, help="Pictures that are encoded at a time.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Compute the codes of all pictures that stages with `cached_codes` draw, each once.

    Goes on where it was stopped. On several GPUs, as `dvc repro` starts it: torchrun --nproc-per-node 8 -m
    training.commands data encode; each process takes its share of the pictures.
    """
    from training.params import load_params

    chosen = load_params(params, size)
    datasets = _datasets(chosen, needs_codes=True)
    facts: dict[str, Any] = {"tokenizer": None, "pictures": 0}
    if datasets:
        facts = _encode(chosen, datasets, outputs, batch)
    if facts.get("rank", 0) == 0:
        artifacts.mkdir(parents=True, exist_ok=True)
        summary = {"codes": facts["tokenizer"]}
        (artifacts / "codes.json").write_text(json.dumps(summary, indent=1) + "\n")
    print_result(facts, f"{facts['pictures']} pictures encoded", as_json)


def _encode(params: "Params", datasets: list["DatasetParams"], outputs: Path, batch: int) -> dict[str, Any]:
    import torch

    from model.checkpoint import load_model
    from training.data.bad_records import BadRecordLog
    from training.data.code_encoding import encode_pictures
    from training.data.prepared_data import DataFolders, open_mixture
    from training.precision import training_device

    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = training_device()
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    by_place = {(dataset.path, dataset.image_root): dataset for dataset in datasets}
    mixture = open_mixture(
        [dataset.model_copy(update={"weight": 1.0}) for dataset in by_place.values()],
        DataFolders(outputs.parent, outputs / "index"),
        held_out=0.0,
        seed=params.seed,
        bad_records=BadRecordLog(),
    )
    model, processor = load_model(outputs / "backbones" / "model")
    tokenizer = model.image_tokenizer.to(device)
    folder, count = encode_pictures(
        mixture.datasets, tokenizer, processor, outputs / "codes", rank, world_size, batch
    )
    return {"rank": rank, "tokenizer": folder.name, "pictures": count, "folder": str(folder)}
