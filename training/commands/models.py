"""Commands about a model's files: evaluate, share, import-weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import UserError
from training.commands.options import (
    LOCAL_MLFLOW,
    OF_DIGITS,
    AsJson,
    DataDir,
    Outputs,
    ParamsFile,
    Prepared,
    Size,
    Spool,
    Tracking,
    print_result,
)

if TYPE_CHECKING:
    from training.params import Params
    from training.tracking.progress import ProgressLines

# At most so many questions and drawings of digits; smoke shows that all works, not how well.
EXTENT = {"tiny": (100_000, 100_000), "smoke": (220, 60)}


def evaluate(
    model: Annotated[
        str | None,
        typer.Option(
            help="A model's folder, models:/NAME@ALIAS or models:/NAME/VERSION; "
            "default: the last stage's, trained here or pulled."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="test, or validation for tuning.")] = "test",
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    prepared: Prepared = Path("prepared"),
    data: DataDir = Path("data"),
    outputs: Outputs = Path("outputs"),
    metrics: Annotated[Path, typer.Option(help="Where figures go.")] = Path("metrics/evaluate.json"),
    plots: Annotated[Path, typer.Option(help="Where plots go.")] = Path("plots"),
    batch: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 64,
    spool: Spool = Path("spool"),
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Measure a model: digits by questions and drawings that are judged, other data by held-out losses."""
    from transformers.utils.logging import disable_progress_bar

    from training.commands.metrics_table import table
    from training.evaluation.tracked_run import track_evaluation
    from training.params import load_params
    from training.registry.fetch import model_folder
    from training.registry.shared_model import final_model
    from training.tracking.progress import progress_lines

    disable_progress_bar()
    chosen = load_params(params, size)
    model = model or str(final_model())
    with model_folder(model, tracking_uri) as folder, progress_lines() as lines:
        if chosen.size in OF_DIGITS:
            found = _evaluate_digits(folder, chosen, prepared, data, split, batch, metrics, plots, lines)
        else:
            found = _evaluate_held_out(folder, chosen, prepared, outputs, split, batch, metrics, plots, lines)
        track_evaluation(model, folder, found, plots, tracking_uri, spool)
    print_result(found, table(found, chosen.promote.floors), as_json)


def _evaluate_digits(
    model: Path,
    params: "Params",
    prepared: Path,
    data: Path,
    split: str,
    batch: int,
    metrics: Path,
    plots: Path,
    lines: "ProgressLines",
) -> dict[str, Any]:
    from training.evaluation.evaluate import EvaluateParams, evaluate

    return evaluate(
        model,
        prepared,
        data,
        EvaluateParams(batch, *EXTENT[params.size]),
        split,
        metrics_file=metrics,
        plots_dir=plots,
        floors=params.promote.floors,
        progress=lines.show,
    )


def _evaluate_held_out(
    model: Path,
    params: "Params",
    prepared: Path,
    outputs: Path,
    split: str,
    batch: int,
    metrics: Path,
    plots: Path,
    lines: "ProgressLines",
) -> dict[str, Any]:
    from training.data.prepared_data import DataFolders
    from training.evaluation.held_out import evaluate_held_out

    if split != "test":
        raise UserError(f"size {params.size} has one held-out split, test, got --split {split}")
    folders = DataFolders(prepared.parent, outputs / "index")
    return evaluate_held_out(
        model, params, folders, batch, metrics_file=metrics, plots_dir=plots, progress=lines.show
    )


def share(as_json: AsJson = False) -> None:
    """Let DVC track the final model, so that `dvc push` and `dvc pull` carry it."""
    from training.registry.shared_model import SHARED, share

    weights = share()
    text = f"{SHARED}: {weights}; to share it: git add {SHARED}.dvc, then dvc push"
    print_result({"model": str(SHARED), "weights_sha256": weights}, text, as_json)


def import_weights(
    vargpt: Annotated[Path | None, typer.Option(help="Folder of a released VARGPT.")] = None,
    llava: Annotated[Path | None, typer.Option(help="Folder of LLaVA-1.5, with its text tokenizer.")] = None,
    var: Annotated[Path | None, typer.Option(help="VAR's weights, the visual decoder.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The weights of VAR's image tokenizer.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="A model of ours, whole or not, for all parts that are not named.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("outputs/backbones/model"),
    preset: Annotated[str, typer.Option(help="The architecture; a base has its own.")] = "7b",
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16 or float32.")] = "bfloat16",
    float32: Annotated[
        list[str] | None, typer.Option(help="A part that is kept in float32; default: image_tokenizer.")
    ] = None,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Compare all weights with their sources; of --out, if it is there."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a model of published weights: VARGPT, or LLaVA, VAR and its tokenizer, or single parts."""
    from training.backbones.import_plan import ImportSources
    from training.backbones.import_run import ImportProgress
    from training.backbones.import_weights import ImportChoices, import_weights, verify_import
    from training.registry.stage_folders import point_to_import
    from training.tracking.progress import progress_lines

    sources = ImportSources(vargpt=vargpt, llava=llava, var=var, tokenizer=tokenizer, base=base)
    with progress_lines() as lines:
        if verify and out.exists():
            verify_import(sources, out, ImportProgress(lines))
            print_result(
                {"model": str(out), "verified": True}, f"every weight is its source's: {out}", as_json
            )
            return
        parts = {} if float32 is None else {"float32_parts": frozenset(float32)}
        choices = ImportChoices(preset=preset, dtype=dtype, **parts)
        imported = import_weights(
            sources, out, choices, is_verified=verify, on_progress=ImportProgress(lines)
        )
    facts = {"model": str(out), "weights_sha256": imported.weights_sha256, "report": imported.report.facts()}
    if pointer := point_to_import(out, imported.weights_sha256, imported.seconds):
        facts["pointer"] = str(pointer)
    print_result(facts, f"{imported.report.summary()}\nimported: {out}", as_json)
