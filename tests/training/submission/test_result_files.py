"""Laws of result files on their way out of a cluster: small ones come whole, large ones stay."""

import subprocess
import sys

import pytest

from tests.training.volume import ROOT
from training.submission import pack_files
from training.submission.submit import results_sha256


@pytest.fixture
def volume(tmp_path):
    """Results of a stage: a file, a folder with a summary, and one of plots."""
    for name, content in {
        "metrics/evaluate.json": "{}",
        "prepared/summary.json": "{}",
        "prepared/shard.tar": "x" * 100,
        "plots/drawings.png": "one",
        "plots/more/targets.png": "two",
    }.items():
        path = tmp_path / "volume" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "volume"


def packed(volume, *paths):
    """What the pod on the volume says, its exit code, and its error."""
    command = [sys.executable, "-m", "training.submission.pack_files", *paths]
    done = subprocess.run(
        command, cwd=volume, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines(), done.returncode, done.stderr


def test_a_folder_comes_as_its_summary_or_whole_where_it_has_none(volume, tmp_path):
    paths = ["metrics/evaluate.json", "prepared", "plots"]

    lines, code, _ = packed(volume, *paths)

    assert code == 0
    assert pack_files.unpack(lines, tmp_path / "here") == [
        "metrics/evaluate.json",
        "prepared/summary.json",
        "plots/drawings.png",
        "plots/more/targets.png",
    ]
    assert results_sha256(tmp_path / "here", paths) == results_sha256(volume, paths)
    (tmp_path / "here/plots/drawings.png").write_text("another")
    assert results_sha256(tmp_path / "here", paths) != results_sha256(volume, paths)


def test_what_a_log_does_not_hold_is_refused_by_name(volume):
    with (volume / "plots/large.png").open("wb") as file:
        file.truncate(pack_files.MOST_BYTES)

    assert packed(volume, "plots") == ([], 2, "error: plots has no summary.json and is larger than 6 MiB\n")


def test_what_is_not_there_is_refused_by_name(volume):
    assert packed(volume, "none.json") == ([], 2, "error: there is no none.json on the volume\n")
