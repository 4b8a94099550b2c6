"""Laws of the locks: every file is named by its hash, nothing is forgotten, and all of them agree."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "requirements"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PARTS = {
    "all": ["train", "cluster", "serve", "package", "deepspeed", "dev"],
    "base": [],
    "training": ["train"],
    "serving": ["serve"],
}
LOCKS = [f"{part}-{torch}" for part in PARTS for torch in ("cpu", "cuda")]
# What only the CUDA build of torch needs; nvidia-ml-py reads a driver and weighs nothing.
CUDA_ONLY = re.compile(r"(nvidia|cuda)-(?!ml-py)|triton$")


def locked(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Every package of a lock: its pins, each with its hashes."""
    found: dict[str, list[tuple[Requirement, list[str]]]] = {}
    text = re.sub(r"^#.*\n", "", (FOLDER / f"{name}.txt").read_text(), flags=re.MULTILINE)
    for entry in re.split(r"\n(?=\w)", text.strip()):
        pin, *hashes = entry.split(" \\\n    --hash=sha256:")
        requirement = Requirement(pin)
        found.setdefault(canonicalize_name(requirement.name), []).append((requirement, hashes))
    return found


def versions(name: str) -> dict[str, set[str]]:
    """The versions of every package of a lock, without what names a build of torch."""
    return {
        package: {str(pin.specifier).removesuffix("+cpu") for pin, _ in pins}
        for package, pins in locked(name).items()
    }


@pytest.mark.parametrize("name", [*LOCKS, "uv", "mlflow"])
def test_every_package_is_one_version_known_by_its_hashes(name):
    for package, pins in locked(name).items():
        for pin, hashes in pins:
            assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), package
            assert pin.url is None, package
            assert hashes and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in hashes), package


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_the_project_asks_for(name):
    wanted = list(PROJECT["dependencies"])
    for extra in PARTS[name.partition("-")[0]]:
        wanted += PROJECT["optional-dependencies"][extra]
    pins = locked(name)

    for requirement in map(Requirement, wanted):
        for pin, _ in pins[canonicalize_name(requirement.name)]:
            assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), pin


@pytest.mark.parametrize("name", LOCKS)
def test_all_locks_agree_on_versions(name):
    everything = versions("all-cuda") | versions("all-cpu")

    for package, found in versions(name).items():
        assert found <= everything[package], package


@pytest.mark.parametrize("part", PARTS)
def test_a_cpu_lock_needs_nothing_of_cuda(part):
    assert not [package for package in locked(f"{part}-cpu") if CUDA_ONLY.match(package)]
    assert [package for package in locked(f"{part}-cuda") if CUDA_ONLY.match(package)]


@pytest.mark.parametrize("part", PARTS)
def test_a_cpu_lock_knows_the_cpu_build_of_torch_for_every_python_that_we_support(part):
    [(pin, hashes)] = [(pin, hashes) for pin, hashes in locked(f"{part}-cpu")["torch"] if "+cpu" in str(pin)]
    low, high = map(int, re.findall(r"3\.(\d+)", PROJECT["requires-python"]))

    assert pin.marker.evaluate({"sys_platform": "linux"})
    # One wheel for each Python on x86_64 and one on aarch64.
    assert len(hashes) >= 2 * (high - low)


def test_uv_is_one_exact_version_everywhere():
    [(pin, _)] = locked("uv")["uv"]
    installers = ["Makefile", "k8s/images/Dockerfile", "k8s/images/mlflow.Dockerfile"]

    assert [line for line in (FOLDER / "uv.in").read_text().splitlines() if line[0] != "#"] == [str(pin)]
    assert versions("all-cpu")["uv"] == {str(pin.specifier)}
    for path in installers:
        text = (ROOT / path).read_text()
        assert "uv.txt" in text, path
        assert not re.search(r"install[^\n]* uv\b(?!\.txt)", text), path


def test_no_lock_names_a_place_to_download_from():
    for path in FOLDER.iterdir():
        assert not re.search(r"://|--index|--find-links|^-[if]", path.read_text(), re.MULTILINE), path


def test_the_tracking_servers_lock_has_the_drivers_and_a_boto3_of_its_time():
    pins = locked("mlflow")
    [(mlflow, _)] = pins["mlflow"]
    [(boto3, _)] = pins["boto3"]

    assert str(mlflow) in PROJECT["optional-dependencies"]["train"], "server and clients are one version"
    assert "psycopg2-binary" in pins
    assert Requirement("boto3>=1.40").specifier.contains(str(boto3.specifier).removeprefix("=="))
