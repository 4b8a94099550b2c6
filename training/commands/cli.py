"""The command `vargpt`: every entry point of the group `vargpt.commands`, as one typer application.

A dot in an entry point's name makes a group of commands. Where the project is not installed, as in an image,
the entry points are read from the pyproject.toml beside the packages. Modules of commands import nothing
heavy (they wait with it until they are called), so `vargpt --help` loads them all and takes a fifth of a
second.
"""

import logging
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

import typer

from model.errors import UserError, redact
from training.launching.exit_codes import PERMANENT_FAILURE, RETRYABLE_FAILURE

ENTRY_POINTS = "vargpt.commands"
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
SETTINGS = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "no_args_is_help": True,
    "context_settings": {"max_content_width": 110},
}


def commands() -> list[EntryPoint]:
    """Entry points of all commands whose package is here (an image of training has no serving)."""
    if PYPROJECT.is_file():
        listed = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][ENTRY_POINTS]
        points = [EntryPoint(name, value, ENTRY_POINTS) for name, value in listed.items()]
    else:
        points = list(entry_points(group=ENTRY_POINTS))
    return [point for point in points if find_spec(point.module.partition(".")[0])]


def application() -> typer.Typer:
    """The commands as typer registers them, in the order of their entry points."""
    root = typer.Typer(help="From versioned data to an answered request.", **SETTINGS)
    root.callback()(lambda: None)
    groups = {"": root}
    for point in commands():
        group, _, name = point.name.rpartition(".")
        if group not in groups:
            groups[group] = typer.Typer(help=f"Commands about {group}.", **SETTINGS)
            root.add_typer(groups[group], name=group)
        function = point.load()
        groups[group].command(name, **getattr(function, "command_settings", {}))(function)
    return root


def main() -> None:
    """Run one command; a bug keeps its traceback.

    A user's mistake is one line and exit code 2; a disk or a network that failed is one, too, and exit code
    138, on which a job on the cluster tries again.
    """
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    try:
        application()(prog_name="vargpt")
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(PERMANENT_FAILURE)
    except OSError as error:
        typer.echo(f"error: a disk or a network failed, trying again may help: {redact(error)}", err=True)
        sys.exit(RETRYABLE_FAILURE)
