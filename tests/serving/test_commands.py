"""The command line: bentos lie with the results of the working directory, without a variable being set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What follows the commands is another program: this one says only which store it would find.
SERVE = """
import os, sys
os.execvp = lambda name, command: print(os.environ["BENTOML_HOME"])
from serving.commands import serve
serve(*sys.argv[1:], host="127.0.0.1", port=3000)
"""
SERVE_NEWEST = SERVE.replace("*sys.argv[1:]", "None")


def run(script: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if name != "BENTOML_HOME"}
    own = {"PYTHONPATH": str(ROOT), "HOME": str(folder / "home"), "BENTOML_DO_NOT_TRACK": "True"}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**inherited, **own, **environment},
    )


def test_bentos_lie_under_the_working_directory(tmp_path: Path):
    done = run(SERVE, "vargpt:latest", folder=tmp_path)

    assert done.stdout.strip() == str(tmp_path / "outputs" / "bentoml")


def test_another_store_can_be_named(tmp_path: Path):
    done = run(SERVE, "vargpt:latest", folder=tmp_path, BENTOML_HOME=str(tmp_path / "mine"))

    assert done.stdout.strip() == str(tmp_path / "mine")


@pytest.mark.slow
def test_the_newest_bento_is_looked_for_there_and_nowhere_else(tmp_path: Path):
    done = run(SERVE_NEWEST, folder=tmp_path)

    assert "nothing to serve" in done.stderr
    assert (tmp_path / "outputs" / "bentoml" / "bentos").is_dir()
    assert not (tmp_path / "home" / "bentoml").exists()
