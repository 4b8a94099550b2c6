"""The command `vargpt`: finds its commands by name and loads each only when it is called.

Commands are entry points of the group `vargpt.commands`; a dot in a name makes a group of commands. Where the
project is not installed, as in an image, they are read from the pyproject.toml beside the packages.
"""

import logging
import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import click
import typer
from typer.main import get_command

GROUP = "vargpt.commands"
DISTRIBUTION = "vargpt-on-kubernetes"
PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
MISTAKE = 2


def find_commands() -> dict[str, EntryPoint]:
    """Every command's entry point by its name."""
    if PYPROJECT.is_file():
        listed = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"][GROUP]
        return {name: EntryPoint(name, value, GROUP) for name, value in listed.items()}
    return {point.name: point for point in entry_points(group=GROUP)}


class Commands(click.Group):
    """Commands below a prefix, loaded when somebody asks for one."""

    def __init__(self, points: dict[str, EntryPoint], prefix: str = "", **facts: str) -> None:
        super().__init__(no_args_is_help=True, **facts)
        self.points, self.prefix = points, prefix

    def list_commands(self, context: click.Context) -> list[str]:
        """Names, in the order of pyproject.toml; a group once."""
        own = [name.removeprefix(self.prefix) for name in self.points if name.startswith(self.prefix)]
        return list(dict.fromkeys(name.partition(".")[0] for name in own))

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """A command, or a group of commands, or None for a name that is neither."""
        full = self.prefix + name
        if full in self.points:
            return _loaded(self.points[full], name)
        if any(other.startswith(f"{full}.") for other in self.points):
            return Commands(self.points, f"{full}.", name=name, help=f"Commands about {name}.")
        return None


def _loaded(point: EntryPoint, name: str) -> click.Command:
    module, _, function = point.value.partition(":")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    passes_on = getattr(getattr(import_module(module), function), "passes_on", False)
    settings = {"ignore_unknown_options": True, "allow_extra_args": True} if passes_on else {}
    app.command(name, context_settings=settings)(getattr(import_module(module), function))
    return get_command(app)


def main() -> None:
    """Run one command; a user's mistake is one line and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    commands = Commands(find_commands(), name="vargpt", help="From versioned data to an answered request.")
    try:
        commands()
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(MISTAKE)


if __name__ == "__main__":
    main()
