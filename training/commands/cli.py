"""The command `vargpt`: finds its commands by name and loads each only when it is called.

Commands are entry points of the group `vargpt.commands`; a dot in a name makes a group of commands. Where the
project is not installed, as in an image, they are read from the pyproject.toml beside the packages.
"""

import ast
import functools
import logging
import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from model.errors import UserError

ENTRY_POINTS = "vargpt.commands"
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
MISTAKE = 2
SETTINGS = {"add_completion": False, "pretty_exceptions_enable": False, "rich_markup_mode": None}


@functools.cache
def commands() -> dict[str, EntryPoint]:
    """Every command's entry point by its name; code that lies here goes before what is installed."""
    if PYPROJECT.is_file():
        listed = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][ENTRY_POINTS]
        return {name: EntryPoint(name, value, ENTRY_POINTS) for name, value in listed.items()}
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


class Commands(TyperGroup):
    """Commands below a prefix. Help is read from their source, so that listing them imports none."""

    prefix = ""

    def list_commands(self, ctx: typer.Context) -> list[str]:
        """Names in the order of pyproject.toml, each group once; none of a package that is not here."""
        here = [name for name, point in commands().items() if _source(point) is not None]
        own = [name.removeprefix(self.prefix) for name in here if name.startswith(self.prefix)]
        return list(dict.fromkeys(name.partition(".")[0] for name in own))

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:
        """The command or the group of this name; None if there is none."""
        full = self.prefix + cmd_name
        if full in commands():
            return _loaded(commands()[full], cmd_name)
        if any(name.startswith(f"{full}.") for name in commands()):
            group = Commands(
                name=cmd_name, help=_about(cmd_name), no_args_is_help=True, rich_markup_mode=None
            )
            group.prefix = f"{full}."
            return group
        return None

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:
        """A line for each."""
        rows = [(name, self._help(name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def _help(self, name: str) -> str:
        point = commands().get(self.prefix + name)
        return first_line(point) if point else _about(name)


def _about(group: str) -> str:
    return f"Commands about {group}."


def _source(point: EntryPoint) -> Path | None:
    """The file of a command's module; None where its package is not, as in an image of training only."""
    package = point.module.partition(".")[0]
    spec = find_spec(point.module) if find_spec(package) else None
    return Path(spec.origin) if spec and spec.origin else None


def first_line(point: EntryPoint) -> str:
    """What a command says of itself, read from its source."""
    source = _source(point)
    assert source is not None
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef) and node.name == point.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def _loaded(point: EntryPoint, name: str) -> Any:
    function = getattr(import_module(point.module), point.attr)
    app = typer.Typer(**SETTINGS)
    app.command(name, **getattr(function, "command_settings", {}))(function)
    return typer.main.get_command(app)


def main() -> None:
    """Run one command; a user's mistake is one line and exit code 2, a bug keeps its traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    app = typer.Typer(cls=Commands, no_args_is_help=True, **SETTINGS)
    app.callback(help="From versioned data to an answered request.")(lambda: None)
    try:
        app(prog_name="vargpt")
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(MISTAKE)
