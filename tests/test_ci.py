"""Laws of .ci/run and of the Makefile: what they name is there, and a suite that cannot run is a failure."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def cluster_suite(**environment):
    """The suite of the cluster where there is none."""
    without = {key: value for key, value in os.environ.items() if key not in ("CLUSTER_SCRIPT", "KUBECONFIG")}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cluster", "-p", "no:cacheprovider", "-x"]
    command += ["-n", "0", "tests/k8s/test_cluster.py"]
    return subprocess.run(
        command, cwd=ROOT, env={**without, **environment}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("required", "code"), [({"CLUSTER": "required"}, 1), ({"CLUSTER": ""}, 0)])
def test_the_cluster_suite_is_skipped_without_a_cluster_unless_it_is_required(required, code):
    done = cluster_suite(**required)

    assert done.returncode == code, done.stdout
    assert ("no cluster: neither CLUSTER_SCRIPT nor KUBECONFIG is set" in done.stdout) == bool(code)


def test_ci_requires_the_cluster_unless_it_is_told_not_to():
    script = (ROOT / ".ci" / "run").read_text()

    assert 'if [ "${CLUSTER:-required}" = none ]' in script
    assert "CLUSTER=required make test-cluster" in script


def test_ci_runs_only_targets_that_there_are():
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))

    assert set(re.findall(r"make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)) <= targets


def test_the_makefile_names_only_files_that_there_are():
    for name in re.findall(r"\b(?:tests|requirements)/[\w/.-]+\.(?:py|sh)\b", MAKEFILE):
        assert (ROOT / name).is_file(), name
