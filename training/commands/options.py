"""Options that several commands of `vargpt` share, and how a command tells its result."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

LOCAL_MLFLOW = "sqlite:///mlflow.db"
MODEL_NAME = "vargpt"
# A gate stayed shut, a hash is wrong, something is missing: an answer, but not a good one.
CHECK_FAILED = 1
# The sizes that learn from the embedded digits.
OF_DIGITS = ("tiny", "smoke")

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameters.")]
Size = Annotated[str | None, typer.Option(help="tiny, smoke or 7b; default: what the parameters say.")]
Prepared = Annotated[Path, typer.Option(help="Folder of prepared data.")]
DataDir = Annotated[Path, typer.Option(help="Folder of raw data.")]
Outputs = Annotated[Path, typer.Option(help="Folder of results: models, indices, codes.")]
PointerFile = Annotated[Path, typer.Option("--pointer", help="The .dvc file that names the raw data.")]
Spool = Annotated[Path, typer.Option(help="Folder of what could not be sent to MLflow.")]
Tracking = Annotated[str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Where MLflow is.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def print_result(facts: Mapping[str, Any], text: str, as_json: bool) -> None:
    """Print a result, for a program or for a reader."""
    typer.echo(json.dumps(facts, allow_nan=False) if as_json else text)
