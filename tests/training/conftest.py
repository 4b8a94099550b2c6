"""A repository whose data real git and real DVC have taken in."""

import shutil
from pathlib import Path

import pytest

from tests.training.registry.repositories import DVC, PARAMS, commit, git, run

DATA = ("b.csv", "a.csv", "deep/er/c.csv", "deep/a b.csv", ".hidden", "deep.csv", "umlaut-\u00e4.csv")


@pytest.fixture(scope="session")
def _committed(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    for name in DATA:
        (root / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "data" / name).write_text(f"content of {name}\n")
    (root / "code.py").write_text("answer = 42\n")
    (root / "params.yaml").write_text(PARAMS)
    git(root, "init", "-q")
    run(root, DVC, "init", "-q")
    run(root, DVC, "add", "-q", "data")
    (root / ".gitignore").write_text("/data\n/outputs\n")
    commit(root, "first")
    return root


@pytest.fixture
def repository(_committed, tmp_path) -> Path:
    """A copy of that repository, to be changed."""
    return Path(shutil.copytree(_committed, tmp_path / "repository", symlinks=True))
