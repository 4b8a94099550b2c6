"""The faces of `vargpt` about models: measure, promote, trace back, import."""

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.errors import UserError
from training.commands.options import (
    CHECK_FAILED,
    LOCAL_MLFLOW,
    MODEL_NAME,
    AsJson,
    DataDir,
    ParamsFile,
    Prepared,
    Size,
    Spool,
    Tracking,
    print_result,
)

if TYPE_CHECKING:
    from training.registry.trace import ChainLink, HashCheck

# At most so many questions and drawings; smoke shows that all works, not how well.
EXTENT = {"tiny": (100_000, 100_000), "smoke": (220, 60)}

ModelDir = Annotated[
    Path | None, typer.Option(help="A published model; default: the last stage's, trained here or pulled.")
]


def evaluate(
    model: ModelDir = None,
    split: Annotated[str, typer.Option(help="test, or validation for tuning.")] = "test",
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    prepared: Prepared = Path("prepared"),
    data: DataDir = Path("data"),
    metrics: Annotated[Path, typer.Option(help="Where figures go.")] = Path("metrics/evaluate.json"),
    plots: Annotated[Path, typer.Option(help="Where plots go.")] = Path("plots"),
    batch: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 64,
    spool: Spool = Path("spool"),
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Measure a model on held-out scans: questions, drawings, image tokenizer."""
    from training.commands.metrics_table import table
    from training.evaluation.evaluate import EvaluateParams, evaluate
    from training.evaluation.tracked_run import track_evaluation
    from training.params import load_params
    from training.registry.shared_model import final_model

    model = model or final_model()
    extent = EvaluateParams(batch, *EXTENT[load_params(params, size).size])
    found = evaluate(
        model,
        prepared,
        data,
        extent,
        split,
        metrics_file=metrics,
        plots_dir=plots,
        progress=lambda line: typer.echo(line, err=True),
    )
    track_evaluation(model, found, plots, tracking_uri, spool)
    print_result(found, table(found), as_json)


def share(as_json: AsJson = False) -> None:
    """Let DVC track the final model, so that `dvc push` and `dvc pull` carry it."""
    from training.registry.shared_model import SHARED, share

    weights = share()
    text = f"{SHARED}: {weights}; to share it: git add {SHARED}.dvc, then dvc push"
    print_result({"model": str(SHARED), "weights_sha256": weights}, text, as_json)


def promote(
    stage: Annotated[Path, typer.Option(help="The pointer of a trained stage.")] = Path(
        "artifacts/stage3.json"
    ),
    metrics: Annotated[Path, typer.Option(help="Its figures.")] = Path("metrics/evaluate.json"),
    params: ParamsFile = Path("params.yaml"),
    name: Annotated[str, typer.Option(help="The registered model.")] = MODEL_NAME,
    by: Annotated[str, typer.Option(envvar="USER", help="Who promotes.")] = "",
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Register a model version; make it champion unless it is worse than the champion. Exit 1 if it is."""
    from training.params import load_params
    from training.registry.lineage import read_lineage
    from training.registry.versions import promote, register

    facts, figures = _read_json(stage, "train"), _read_json(metrics, "evaluate")
    margins = load_params(params).promote.margins
    folder = Path(facts["model"])
    _refuse_stale(stage, facts, folder)
    version = register(tracking_uri, name, facts["run_id"], folder, figures, read_lineage(folder))
    record = stage.parent / "promotions.jsonl"
    outcome = promote(tracking_uri, name, version, margins, by=by, record=record)
    print_result({**dataclasses.asdict(outcome), "report": outcome.report}, outcome.report, as_json)
    if not outcome.is_champion:
        raise typer.Exit(CHECK_FAILED)


def _read_json(path: Path, command: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no {path}; make it with: vargpt {command}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _refuse_stale(pointer: Path, facts: dict[str, Any], folder: Path) -> None:
    """A pointer and the model that it names can part when a stage is interrupted."""
    from model.manifest import manifest_sha256

    if (found := manifest_sha256(folder)) != facts["weights_sha256"]:
        raise UserError(
            f"{pointer} names weights {facts['weights_sha256']}, {folder} holds {found}: train again"
        )


def lineage(
    model: Annotated[
        str, typer.Argument(help="A model's folder, or models:/NAME@ALIAS or models:/NAME/VERSION.")
    ] = "outputs/stage3/model",
    root: Annotated[Path, typer.Option(help="The repository.")] = Path(),
    outputs: Annotated[
        Path | None, typer.Option(help="Where models lie that it was trained from; default: ROOT/outputs.")
    ] = None,
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Walk back from a model to its data and to the first model, verifying every hash. Exit 1 if one is
    wrong.

    What is not here any more is marked with `?` and is not wrong.
    """
    from training.registry.fetch import REGISTERED, fetch
    from training.registry.lineage import read_lineage
    from training.registry.trace import trace_lineage

    with tempfile.TemporaryDirectory() as scratch:
        is_registered = model.startswith(REGISTERED)
        folder = fetch(tracking_uri, model, Path(scratch)) if is_registered else Path(model)
        record = dataclasses.asdict(read_lineage(folder))
        chain = trace_lineage(folder, root, outputs or root / "outputs")
    lines = [f"{name + ':':24}{value}" for name, value in record.items() if value is not None]
    lines += [line for link in chain for line in _told(link)]
    facts = {"model": model, "record": record, "chain": [dataclasses.asdict(link) for link in chain]}
    print_result(facts, "\n".join(lines), as_json)
    if any(check.is_right is False for link in chain for check in link.checks):
        raise typer.Exit(CHECK_FAILED)


def _told(link: "ChainLink") -> Iterator[str]:
    """One model of a chain, its checks, and the files that imported weights were read from."""
    yield ""
    yield f"{link.stage}: {link.weights_sha256}"
    for check in link.checks:
        yield f"  {_verdict(check)} {check.name}: {check.recorded}"
        if not check.is_right:
            yield f"        {check.found}"
    for name, sha256 in (link.sources_sha256 or {}).items():
        yield f"        from {name}: {sha256}"


def _verdict(check: "HashCheck") -> str:
    return {True: "ok   ", False: "WRONG", None: "?    "}[check.is_right]


def import_weights(
    llava: Annotated[Path, typer.Option(help="LLaVA-1.5's folder, or a released VARGPT's.")],
    out: Annotated[Path, typer.Option(help="Where the model goes.")] = Path("outputs/backbones/model"),
    var: Annotated[Path | None, typer.Option(help="VAR's weights; not with a released VARGPT.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The image tokenizer's weights; not with a released VARGPT.")
    ] = None,
    preset: Annotated[str, typer.Option(help="The architecture.")] = "7b",
    as_json: AsJson = False,
) -> None:
    """Make a model of published weights: vision tower, language model, visual decoder, image tokenizer."""
    from training.backbones.import_weights import import_weights

    folder = import_weights(llava, var, tokenizer, out, preset)
    print_result({"model": str(folder)}, f"imported: {folder}", as_json)
