"""The commands `vargpt package`, `vargpt serve` and `vargpt ask`: options in, one function called, facts out.

Heavy imports wait inside the functions, so that a mistake is told at once.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model.errors import UserError

if TYPE_CHECKING:
    from serving.client import Answer

LOCAL_URL = "http://127.0.0.1:3000"
BENTO_STORE = Path("outputs") / "bentoml"

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def package(
    model_uri: Annotated[str, typer.Option(help="models:/NAME@ALIAS or models:/NAME/VERSION")] = (
        "models:/vargpt@champion"
    ),
    tracking_uri: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="Where MLflow keeps the registry.")
    ] = "sqlite:///mlflow.db",
    torch: Annotated[
        str, typer.Option(help="The build of torch that the bento installs: cpu or cuda; default: as here.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Builds a bento of a registered model version."""
    from serving.packaging import LOCKS, package

    _set_bento_store()
    torch = torch or ("cpu" if version("torch").endswith("+cpu") else "cuda")
    if torch not in LOCKS:
        raise UserError(f"--torch must be one of {list(LOCKS)}, got {torch!r}")
    tag = package(tracking_uri, model_uri, lock=LOCKS[torch])
    typer.echo(json.dumps({"bento_tag": tag, "model_uri": model_uri}) if as_json else tag)


def serve(
    target: Annotated[
        str | None,
        typer.Argument(help="A bento's tag or the folder of a published model; default: the newest."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 3000,
) -> None:
    """Serves a bento, or a published model with the code that lies here, until stopped."""
    from serving.client import serve_command

    _set_bento_store()
    command = serve_command(_as_target(target), host, port)
    os.execvp(command[0], command)


def ask(
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    image: Annotated[list[Path] | None, typer.Option(help="A picture to show; may be repeated.")] = None,
    out: Annotated[Path, typer.Option(help="Where drawn pictures go: OUT, OUT-2, ...")] = Path("reply.png"),
    url: Annotated[
        str | None,
        typer.Option(help=f"A running service; default: {LOCAL_URL} if it answers, else one is started."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    target: Annotated[
        str | None, typer.Option(help="What to start: a bento's tag or a model folder.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Asks the model one thing; prints its text and where the pictures lie."""
    from serving.client import Server, chat, is_ready

    _set_bento_store()
    options = {} if seed is None else {"seed": seed}
    if url is None and target is None and is_ready(LOCAL_URL):
        url = LOCAL_URL
    if url:
        answer = chat(url, prompt, image or (), **options)
    else:
        with Server(_as_target(target)) as server:
            answer = chat(server.url, prompt, image or (), **options)
    paths = answer.save(out)
    _report(answer, paths, as_json=as_json)


def _set_bento_store() -> None:
    """Bentos lie with the other results of the working directory, unless BENTOML_HOME says otherwise.

    Called before anything imports BentoML, which reads the variable once.
    """
    os.environ.setdefault("BENTOML_HOME", str(BENTO_STORE.resolve()))


def _report(answer: "Answer", paths: list[Path], *, as_json: bool) -> None:
    if as_json:
        record = {
            "text": answer.text,
            "images": [str(path) for path in paths],
            "seed": answer.body["seed"],
            "usage": answer.body["usage"],
            "model_version": answer.model_version,
            "request_id": answer.request_id,
        }
        typer.echo(json.dumps(record))
        return
    typer.echo(answer.text)
    for path in paths:
        typer.echo(f"picture: {path}")


def _as_target(text: str | None) -> str | Path:
    from serving.client import find_target

    if text is None:
        return find_target()
    return Path(text) if Path(text).is_dir() else text
