"""Laws of the command line: fast to list, one line for a mistake, a traceback for a bug, alike everywhere."""

import functools
import json
import os
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from tests.training.raw_data import copy_raw_data
from training.commands.cli import ENTRY_POINTS

ROOT = Path(__file__).parents[3]
LISTED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][ENTRY_POINTS]
HEAVY = {"torch", "mlflow", "sklearn", "bentoml", "httpx", "numpy", "PIL", "transformers"}


def vargpt(*arguments, cwd=ROOT, code_at=ROOT):
    environment = {**os.environ, "PYTHONPATH": str(code_at), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "training.commands", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@functools.cache
def help_of(*group):
    """What `--help` says of the commands of a group."""
    return vargpt(*group, "--help").stdout


def lone_command(folder, body):
    """The command line with one command of the test's own."""
    for package in ("training", "model"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored, dirs_exist_ok=True)
    (folder / "own.py").write_text(f'import typer\n\n\ndef play():\n    """Does a thing."""\n{body}')
    (folder / "pyproject.toml").write_text(f'[project.entry-points."{ENTRY_POINTS}"]\nplay = "own:play"\n')


def test_help_names_every_command_and_imports_nothing_heavy():
    code = """
import sys
from training.commands.cli import main
sys.argv = ["vargpt", "--help"]
try:
    main()
finally:
    sys.stderr.write(" ".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    for name in LISTED:
        assert f"\n  {name.partition('.')[0]} " in done.stdout, name
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize("name", LISTED)
def test_every_command_says_what_it_does(name):
    module, _, attribute = LISTED[name].partition(":")
    first_line = getattr(import_module(module), attribute).__doc__.partition("\n")[0]

    above = help_of(*name.split(".")[:-1])

    # Its first sentence, cut where the line ends.
    assert f" {name.rpartition('.')[2]} " in above
    assert first_line[:24] in above


def test_a_misspelt_command_is_told_the_right_one():
    assert "Did you mean 'lineage'?" in vargpt("lineag").stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["lineage", "nowhere"], "nowhere/lineage.json does not exist"),
        (["data", "prepare", "--data", "nowhere"], "there are no scans at nowhere/digits.parquet"),
        (["data", "prepare", "--params", "none.yaml"], "no parameters at none.yaml"),
        (["data", "prepare", "--size", "huge"], "size must be one of ['tiny', 'smoke', '7b'], got 'huge'"),
        (["train", "nonsense"], "got 'nonsense'"),
        (["promote", "--stage", "none.json"], "there is no none.json"),
        (["nonsense"], "No such command 'nonsense'"),
        (["data", "nonsense"], "No such command 'nonsense'"),
        (["ask"], "Missing argument 'prompt'"),
        (["evaluate", "--batch", "0"], "--batch"),
    ],
)
def test_a_mistake_is_told_in_words_and_ends_with_2(arguments, reason):
    done = vargpt(*arguments)

    assert done.returncode == 2, done.stderr
    assert reason in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout


def test_a_mistake_is_one_line_and_a_bug_keeps_its_traceback(tmp_path):
    lone_command(
        tmp_path, '    from model.errors import UserError\n    raise UserError("colour must be red")\n'
    )
    mistake = vargpt("play", cwd=tmp_path, code_at=tmp_path)
    (tmp_path / "own.py").write_text('def play():\n    """Does."""\n    return {}["absent"]\n')
    bug = vargpt("play", cwd=tmp_path, code_at=tmp_path)

    assert (mistake.returncode, mistake.stderr) == (2, "error: colour must be red\n")
    assert bug.returncode == 1
    assert "Traceback" in bug.stderr
    assert "KeyError: 'absent'" in bug.stderr


def test_a_disk_or_a_network_that_failed_is_one_line_and_can_be_tried_again(tmp_path):
    lone_command(tmp_path, '    raise OSError(116, "Stale file handle", "/workspace/prepared")\n')
    disk = vargpt("play", cwd=tmp_path, code_at=tmp_path)
    lone_command(tmp_path, '    raise ConnectionError("http://ada:secret@mlflow:5000 is gone")\n')
    network = vargpt("play", cwd=tmp_path, code_at=tmp_path)

    said = "error: a disk or a network failed, trying again may help: "
    assert (disk.returncode, network.returncode) == (138, 138), disk.stderr
    assert disk.stderr == f"{said}[Errno 116] Stale file handle: '/workspace/prepared'\n"
    assert network.stderr == f"{said}http://mlflow:5000 is gone\n"


def test_a_command_ends_with_the_exit_code_that_it_asks_for(tmp_path):
    lone_command(tmp_path, "    raise typer.Exit(1)\n")

    done = vargpt("play", cwd=tmp_path, code_at=tmp_path)

    assert (done.returncode, done.stderr) == (1, "")


def test_an_image_without_serving_has_the_other_commands(tmp_path):
    for package in ("training", "model"):
        shutil.copytree(
            ROOT / package, tmp_path / "app" / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "app")
    workspace = tmp_path / "workspace"
    workspace.mkdir()

    # With -S nothing that is installed as a project is seen, only what lies on the path.
    environment = {"PATH": os.environ["PATH"], "PYTHONSAFEPATH": "1"}
    paths = [str(tmp_path / "app"), *(path for path in sys.path if "site-packages" in path)]
    command = [sys.executable, "-S", "-m", "training.commands"]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    listed = subprocess.run(
        [*command, "--help"], cwd=workspace, env=environment, capture_output=True, text=True
    )
    done = subprocess.run(
        [*command, "lineage", "nowhere"],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert listed.returncode == 0, listed.stderr
    assert "\n  train " in listed.stdout
    assert "\n  ask " not in listed.stdout
    assert (done.returncode, done.stderr.splitlines()[0][:14]) == (2, "error: nowhere")


def test_train_hands_the_launcher_what_it_does_not_know():
    done = vargpt("train", "--help")

    assert "--max-attempts" in done.stdout


def test_what_cannot_be_sent_is_said_and_ends_with_1(tmp_path):
    (tmp_path / "file").touch()

    done = vargpt("sync", "--tracking-uri", f"sqlite:///{tmp_path}/file/mlflow.db", "--json", cwd=tmp_path)

    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["reason"]


def test_the_doctor_says_how_to_get_what_is_missing(tmp_path):
    shutil.copy(ROOT / "data.dvc", tmp_path)

    without = vargpt("doctor", "--json", cwd=tmp_path)
    copy_raw_data(tmp_path / "data")
    mended = vargpt("doctor", "--json", cwd=tmp_path)

    assert without.returncode == 1
    assert json.loads(without.stdout)["data"]["advice"] == "dvc pull"
    assert json.loads(mended.stdout)["data"]["is_fine"]
    assert "is made by the first run" in json.loads(mended.stdout)["tracking"]["found"]
    assert not (tmp_path / "mlflow.db").exists()


def test_pictures_are_not_encoded_none_at_a_time():
    done = vargpt("data", "encode", "--batch", "0")

    assert done.returncode == 2
    assert "--batch" in done.stderr
