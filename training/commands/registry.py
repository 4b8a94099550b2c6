"""Commands about registered models: promote, rollback, lineage."""

import dataclasses
import getpass
import json
import os
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
    ParamsFile,
    Size,
    Tracking,
    print_result,
)

if TYPE_CHECKING:
    from training.registry.trace import ChainLink, HashCheck

Name = Annotated[str, typer.Option(help="The registered model.")]
By = Annotated[str, typer.Option(help="Who does this; default: $USER, else git's user.name.")]
Record = Annotated[Path, typer.Option(help="Where decisions are written down, as JSON lines.")]
RECORD = Path("artifacts/promotions.jsonl")


def promote(
    stage: Annotated[Path, typer.Option(help="The pointer of a trained stage.")] = Path(
        "artifacts/stage3.json"
    ),
    metrics: Annotated[Path, typer.Option(help="Its figures.")] = Path("metrics/evaluate.json"),
    champion_metrics: Annotated[
        Path | None, typer.Option(help="The champion's figures, if it was evaluated anew.")
    ] = None,
    params: ParamsFile = Path("params.yaml"),
    size: Size = None,
    name: Name = MODEL_NAME,
    by: By = "",
    record: Record = RECORD,
    weights_volume: Annotated[
        Path | None,
        typer.Option(
            help="A folder that all readers mount: weights go there in place of MLflow's artifacts."
        ),
    ] = None,
    challenger: Annotated[
        bool,
        typer.Option(
            "--challenger", help="Let a canary decide: vargpt deploy --canary 10 --alias challenger."
        ),
    ] = False,
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Register a model version; make it champion if floors and champions so far allow. Exit 1 if not."""
    from training.params import load_params
    from training.registry.lineage import read_lineage
    from training.registry.promotion import promote
    from training.registry.versions import CHAMPION, register, replace_figures

    facts, figures = _read_pointer(stage), _read_json(metrics, "evaluate")
    gates = load_params(params, size).promote
    folder, who = Path(facts["model"]), acting_user(by)
    _refuse_stale(stage, facts, folder)
    if champion_metrics is not None:
        replace_figures(tracking_uri, name, CHAMPION, _read_json(champion_metrics, "evaluate"))
    version = register(
        tracking_uri, name, facts["run_id"], folder, figures, read_lineage(folder), weights_volume
    )
    if challenger:
        _make_challenger(tracking_uri, name, version, as_json)
        return
    outcome = promote(tracking_uri, name, version, gates.margins, gates.floors, who, record)
    print_result({**dataclasses.asdict(outcome), "report": outcome.report}, outcome.report, as_json)
    if not outcome.is_champion:
        raise typer.Exit(CHECK_FAILED)


def _make_challenger(tracking_uri: str, name: str, version: str, as_json: bool) -> None:
    """The alias alone; the champion stays whatever it is."""
    from training.registry.versions import CHALLENGER, CHAMPION, open_registry

    client = open_registry(tracking_uri)
    if str(client.get_registered_model(name).aliases.get(CHAMPION)) == version:
        raise UserError(f"version {version} is the champion already")
    client.set_registered_model_alias(name, CHALLENGER, version)
    print_result({"version": version}, f"version {version} is the challenger", as_json)


def rollback(
    name: Name = MODEL_NAME,
    by: By = "",
    record: Record = RECORD,
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Make the champion before the present one champion again; repeated, go further back."""
    from training.registry.promotion import roll_back

    who = acting_user(by)
    outcome = roll_back(tracking_uri, name, who, record)
    text = f"version {outcome.version} is the champion again; {who} withdrew version {outcome.withdrawn}"
    print_result({**dataclasses.asdict(outcome), "by": who}, text, as_json)


def acting_user(by: str) -> str:
    """Who is said to act: as given, else $USER, git's user.name or the account's name."""
    from training.registry.git_history import user_name

    if named := by.strip() or os.environ.get("USER", "").strip() or user_name(Path()):
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise UserError("nobody is named who does this: --by NAME") from None


def _read_json(path: Path, command: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"there is no {path}; make it with: vargpt {command}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} must hold one JSON object, got {type(found).__name__}")
    return found


def _read_pointer(path: Path) -> dict[str, Any]:
    found = _read_json(path, "train")
    if missing := [name for name in ("model", "weights_sha256", "run_id") if name not in found]:
        raise UserError(f"{path} is no pointer of a trained stage: it has no {missing[0]!r}")
    return found


def _refuse_stale(pointer: Path, facts: dict[str, Any], folder: Path) -> None:
    """A pointer and the model that it names can part when a stage is interrupted."""
    from model.manifest import manifest_sha256

    if (found := manifest_sha256(folder)) != facts["weights_sha256"]:
        raise UserError(
            f"{pointer} names weights {facts['weights_sha256']}, {folder} holds {found}: train again"
        )


def lineage(
    model: Annotated[
        str,
        typer.Argument(
            help="A model's folder, models:/NAME@ALIAS, models:/NAME/VERSION, or a reply's X-Model-Version."
        ),
    ] = "outputs/stage3/model",
    root: Annotated[Path, typer.Option(help="The repository.")] = Path(),
    outputs: Annotated[
        Path | None, typer.Option(help="Where models lie that it was trained from; default: ROOT/outputs.")
    ] = None,
    name: Name = MODEL_NAME,
    tracking_uri: Tracking = LOCAL_MLFLOW,
    as_json: AsJson = False,
) -> None:
    """Walk back from a model to its data and to the first model, verifying every hash. Exit 1 if one is
    wrong.

    What is not here, such as weights on a volume of a cluster, is marked with `?` and is not wrong.
    """
    from training.registry.fetch import model_folder
    from training.registry.lineage import read_lineage
    from training.registry.trace import trace_lineage

    # What the service sends with every reply is the number of its version.
    if model.isdecimal() and not Path(model).exists():
        model = f"models:/{name}/{model}"
    with model_folder(model, tracking_uri, needs_weights=False) as folder:
        record = dataclasses.asdict(read_lineage(folder))
        chain = trace_lineage(folder, root, outputs or root / "outputs")
    lines = [f"{key + ':':24}{value}" for key, value in record.items() if value is not None]
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
        yield f"  {_verdict(check)} {check.name}: {check.recorded or 'none'}"
        if not check.is_right:
            yield f"        {check.found}"
    for name, sha256 in (link.sources_sha256 or {}).items():
        yield f"        from {name}: {sha256}"


def _verdict(check: "HashCheck") -> str:
    return {True: "ok   ", False: "WRONG", None: "?    "}[check.is_right]
