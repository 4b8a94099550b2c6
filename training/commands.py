"""The faces of `vargpt` about data, training and models: options in, one function called, facts out.

Heavy imports wait inside the functions, so that `--help` does not.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

GATE_CLOSED = 1
MODEL_NAME = "vargpt"

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters.")]
Size = Annotated[str | None, typer.Option(help="tiny or smoke; default: what the parameters say.")]
Prepared = Annotated[Path, typer.Option(help="Folder of prepared data.")]
DataDir = Annotated[Path, typer.Option(help="Folder of raw data.")]
PointerFile = Annotated[Path, typer.Option(help="The .dvc file that names the raw data.")]
Tracking = Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Where MLflow is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
LOCAL_MLFLOW = "sqlite:///mlflow.db"


def _tell(facts: dict[str, object], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else text)


def restore(
    pointer: PointerFile = Path("data.dvc"), data: DataDir = Path("data"), as_json: AsJson = False
) -> None:
    """Write the raw data without network, and check it against the hash in data.dvc."""
    from training.raw import restore

    written = restore(data, pointer)
    _tell(
        {"data": str(data), "written": written}, f"{data}: as {pointer} names it, {written} written", as_json
    )


def prepare(
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    data: DataDir = Path("data"),
    out: Annotated[Path, typer.Option(help="Where prepared data goes.")] = Path("prepared"),
    as_json: AsJson = False,
) -> None:
    """Render scenes from the scans and write them in published layouts."""
    from training.params import load_params
    from training.prepare import prepare

    chosen = load_params(params, size)
    summary = prepare(chosen.prepare, chosen.seed, data, out, lambda name: typer.echo(name, err=True))
    _tell(summary, f"{out}: {sum(summary.values())} records", as_json)


def train(
    context: typer.Context,
    stage: Annotated[str, typer.Argument(help="backbones, stage1, stage2, stage3 or joint")],
) -> None:
    """Train one stage; further options are those of `python -m training.launch --help`."""
    command = [sys.executable, "-m", "training.launch", stage, *context.args]
    os.execv(command[0], command)


train.passes_on = True  # type: ignore[attr-defined]


def evaluate(
    model: Annotated[Path, typer.Option(help="A published model.")] = Path("outputs/stage3/model"),
    split: Annotated[str, typer.Option(help="test, or validation for tuning.")] = "test",
    prepared: Prepared = Path("prepared"),
    data: DataDir = Path("data"),
    metrics: Annotated[Path, typer.Option(help="Where figures go.")] = Path("metrics/evaluate.json"),
    plots: Annotated[Path, typer.Option(help="Where plots go.")] = Path("plots"),
    questions: Annotated[int, typer.Option(min=1, help="At most so many questions.")] = 100_000,
    drawings: Annotated[int, typer.Option(min=1, help="At most so many drawings.")] = 100_000,
    batch: Annotated[int, typer.Option(min=1, help="Requests answered together.")] = 64,
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Measure a model on held-out scans: questions, drawings, image tokenizer."""
    from training.evaluate import EvaluateParams, evaluate
    from training.evaluation_run import track_evaluation

    found = evaluate(
        model,
        prepared,
        data,
        EvaluateParams(batch, questions, drawings),
        split,
        metrics_file=metrics,
        plots_dir=plots,
        progress=lambda line: typer.echo(line, err=True),
    )
    track_evaluation(model, found, plots, tracking_uri, Path("spool"))
    _tell(found, table(found), as_json)


def table(metrics: dict) -> str:
    """The figures that have a target, one a line."""
    from training.plots import TARGETS

    lines = [f"{'':22}{'reached':>9}{'must':>8}{'aim':>8}"]
    for name, (must, aim) in TARGETS.items():
        value: object = metrics
        for key in name.split("."):
            value = value[key]  # type: ignore[index]
        shown = "none" if value is None else f"{value:.3f}"
        lines.append(f"{name:22}{shown:>9}{must:>8}{aim:>8}")
    return "\n".join(lines)


def promote(
    pointer: Annotated[Path, typer.Option(help="The pointer of the trained stage.")] = Path(
        "artifacts/stage3.json"
    ),
    metrics: Annotated[Path, typer.Option(help="Its figures.")] = Path("metrics/evaluate.json"),
    params: ParamsFile = Path("params.yaml"),
    name: Annotated[str, typer.Option(help="The registered model.")] = MODEL_NAME,
    by: Annotated[str, typer.Option(envvar="USER", help="Who promotes.")] = "",
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Register a model version; make it champion if it is no worse than the champion. Exit 1 if it is."""
    from training.lineage import read_lineage
    from training.params import load_params, plain
    from training.registry import promote, register

    facts, figures = _read_json(pointer, "train"), _read_json(metrics, "evaluate")
    folder = Path(facts["model"])
    version = register(tracking_uri, name, facts["run_id"], folder, figures, read_lineage(folder))
    margins = plain(load_params(params).promote.margins)
    record = pointer.parent / "promotions.jsonl"
    outcome = promote(tracking_uri, name, version, margins, by=by, record=record)
    _tell(dataclasses.asdict(outcome), outcome.report, as_json)
    if not outcome.is_champion:
        raise typer.Exit(GATE_CLOSED)


def _read_json(path: Path, command: str) -> dict:
    if not path.is_file():
        raise ValueError(f"there is no {path}; make it with: vargpt {command}")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def sync(
    spool: Annotated[Path, typer.Option(help="Folder of what could not be sent.")] = Path("spool"),
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Send MLflow what it could not take while training ran."""
    from training.sender import sync_spools

    report = sync_spools(spool, tracking_uri)
    _tell(dataclasses.asdict(report), str(report), as_json)


def lineage(
    model: Annotated[Path, typer.Option(help="A published model.")] = Path("outputs/stage3/model"),
    root: Annotated[Path, typer.Option(help="The repository.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Walk back from a model to its data and verify every hash. Exit 1 if one is wrong."""
    from training.lineage import walk

    checks = walk(model, root)
    lines = [f"{'ok   ' if c.is_right else 'WRONG'} {c.name}: {c.recorded}" for c in checks]
    lines += [f"      {c.name} is {c.found}" for c in checks if not c.is_right]
    _tell({check.name: dataclasses.asdict(check) for check in checks}, "\n".join(lines), as_json)
    if not all(check.is_right for check in checks):
        raise typer.Exit(GATE_CLOSED)


def doctor(pointer: PointerFile = Path("data.dvc"), as_json: AsJson = False) -> None:
    """Say what this machine has and lacks. Exit 1 if something needed is missing."""
    from training.doctor import examine

    findings = examine(pointer)
    lines = [f"{'ok     ' if f.is_fine else 'MISSING'} {f.name}: {f.found}" for f in findings]
    lines += [f"        {finding.name}: {finding.advice}" for finding in findings if not finding.is_fine]
    _tell({finding.name: dataclasses.asdict(finding) for finding in findings}, "\n".join(lines), as_json)
    if not all(finding.is_fine for finding in findings):
        raise typer.Exit(GATE_CLOSED)


def demo(
    params: ParamsFile = Path("params.yaml"),
    out: Annotated[Path, typer.Option(help="Where reply and summary go.")] = Path("outputs/demo"),
    prompt: Annotated[str, typer.Option(help="What to ask.")] = "Draw a red seven on white and describe it.",
    tracking_uri: Tracking = LOCAL_MLFLOW,
) -> None:
    """Everything once: data, pipeline, promotion, packaging, and one request that is answered over HTTP."""
    from training.demo import Demo

    run = Demo(params, out, prompt, tracking_uri)
    summary = run.play()
    typer.echo("\n".join([table(summary["metrics"]), *run.closing_words()]))
